"""The memory-bound core: y[b] = sum_k w[b, k] * V[ids[b, k]], and its two transposes.

Each table row is read once per use, and no (B, K, D) tensor is formed:

- forward: one `embedding_bag`, which reads B * K rows;
- gradient of w: a sampled matrix product, which computes only B * K entries of G V^T;
- gradient of V: the same gather transposed. Uses are sorted by row, then each row gathers
  the output gradients of the tokens that read it. There are no atomics, so the result is
  deterministic, and it is as small as the set of rows read.

On a GPU with triton the same functions run as kernels (`kernels/`), whose backward pass forms both
gradients in one pass.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.models.remember.values.kernels.choice import use_kernels

# Shapes: B bags (tokens), K reads per bag, D width, S slots, M all reads, U distinct rows read

_SAMPLED_PRODUCT_DTYPES = (torch.float32, torch.float64)
_LARGEST_INT32 = 2**31 - 1
# With at least this many reads per slot, a table larger than the cache is better read in its own
# order than at random.
_CACHED_BYTES = 32 << 20
_READS_A_SLOT = 0.25


def weighted_gather(values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Sum the given rows with the given weights, without gradient.

    Args:
        values_SD: The table, float32, float64, bfloat16 or float16.
        ids_BK: int64 in [0, S).
        weights_BK: Weights; rounded to the table's dtype.

    Returns:
        y_BD in the table's dtype.

    >>> weighted_gather(torch.eye(3), torch.tensor([[0, 2]]), torch.tensor([[2.0, 0.5]])).tolist()
    [[2.0, 0.0, 0.5]]
    """
    if use_kernels(values_SD):
        from triptych.models.remember.values.kernels.launches import gather

        return gather(values_SD, ids_BK, weights_BK)
    return F.embedding_bag(
        ids_BK, values_SD, per_sample_weights=weights_BK.to(values_SD.dtype), mode="sum"
    )


def ragged_gather(values_SD: Tensor, ids_M: Tensor, weights_M: Tensor, starts_B1: Tensor) -> Tensor:
    """Compute `weighted_gather` for bags of different sizes.

    Args:
        starts_B1: int64; bag b holds the reads from starts[b] to starts[b + 1].
    """
    if use_kernels(values_SD):
        from triptych.models.remember.values.kernels.launches import Segments, segment_sums

        order_M = torch.arange(ids_M.numel(), device=ids_M.device)
        return segment_sums(
            Segments(starts_B1, order_M), weights_M, values_SD, ids_M, values_SD.dtype
        )[0]
    return F.embedding_bag(
        ids_M,
        values_SD,
        starts_B1,
        per_sample_weights=weights_M.to(values_SD.dtype),
        mode="sum",
        include_last_offset=True,
    )


def weight_gradient(grad_BD: Tensor, values_SD: Tensor, ids_BK: Tensor) -> Tensor:
    """Compute the gradient of the weights: dot products of output gradients and rows read.

    Returns:
        grad_BK in the table's dtype.
    """
    if use_kernels(values_SD, grad_BD):
        from triptych.models.remember.values.kernels.launches import weight_dots

        return weight_dots(grad_BD, values_SD, ids_BK).to(values_SD.dtype)
    num_bags, num_reads = ids_BK.shape
    num_slots = values_SD.shape[0]
    flat_M = ids_BK.flatten()
    grad_BD = grad_BD.to(values_SD.dtype)
    # The sampled product cannot hold more entries than the whole matrix has.
    if _has_sampled_product(values_SD, flat_M.numel()) and num_reads <= num_slots:
        dense_reads = flat_M.numel() >= _READS_A_SLOT * num_slots
        if not dense_reads or values_SD.numel() * values_SD.element_size() < _CACHED_BYTES:
            dots_M = _sampled_product(_starts(ids_BK), flat_M, grad_BD, values_SD)
            return dots_M.view(num_bags, num_reads)
        sorted_M, order_M = _sort(flat_M, num_slots)
        starts_S1 = _row_starts(sorted_M, num_slots)
        dots_M = flat_M.new_empty(flat_M.shape, dtype=values_SD.dtype)
        dots_M[order_M] = _sampled_product(starts_S1, order_M // num_reads, values_SD, grad_BD)
        return dots_M.view(num_bags, num_reads)
    bags_M = torch.arange(num_bags, device=ids_BK.device).repeat_interleave(num_reads)
    starts_B = _starts(ids_BK)[:-1]
    grad_M: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_BD.contiguous(), values_SD, flat_M, starts_B, bags_M, 0
    )
    return grad_M.view(num_bags, num_reads)


def _sampled_product(starts: Tensor, columns_M: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Compute the dot products of the pairs of rows (left, right) in a CSR pattern."""
    pattern = _csr(starts, columns_M, left.new_zeros(columns_M.numel()), right.shape[0])
    dots_M: Tensor = torch.sparse.sampled_addmm(pattern, left, right.t(), beta=0.0).values()
    return dots_M


def transposed_gather(
    rows_M: Tensor,
    bags_M: Tensor,
    weights_M: Tensor,
    grad_BD: Tensor,
    num_rows: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Compute the table's compact gradient: for each row read, sum_m weights[m] * grad[bag[m]].

    Args:
        rows_M: int64, the row of each read.
        bags_M: int64 in [0, B), the bag of each read.
        weights_M: The weight of each read.
        grad_BD: Output gradients.
        num_rows: S, if known; the largest row is looked up without it, and a GPU waits for that.

    Returns:
        rows_U: int64, distinct, ascending. sums_UD: in grad's dtype.

    >>> rows, sums = transposed_gather(torch.tensor([7, 2, 7]), torch.tensor([0, 0, 1]),
    ...     torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0], [10.0]]))
    >>> rows.tolist(), sums.tolist()
    ([2, 7], [[2.0], [31.0]])
    """
    if rows_M.numel() == 0:
        return rows_M, grad_BD.new_zeros(0, grad_BD.shape[1])
    sorted_M, order_M = _sort(rows_M, int(rows_M.max()) + 1 if num_rows is None else num_rows)
    rows_U, counts_U = torch.unique_consecutive(sorted_M, return_counts=True)
    starts_U1 = F.pad(counts_U.cumsum(0), (1, 0))
    return rows_U.long(), ragged_gather(grad_BD, bags_M[order_M], weights_M[order_M], starts_U1)


def dense_transposed_gather(
    rows_M: Tensor, bags_M: Tensor, weights_M: Tensor, grad_BD: Tensor, num_rows: int
) -> Tensor:
    """Compute `transposed_gather` for every row of the table, zero for rows that were not read.

    Returns:
        sums_SD: in grad's dtype; S is `num_rows`.
    """
    if rows_M.numel() == 0:
        return grad_BD.new_zeros(num_rows, grad_BD.shape[1])
    sorted_M, order_M = _sort(rows_M, num_rows)
    starts_S1 = _row_starts(sorted_M, num_rows)
    return ragged_gather(grad_BD, bags_M[order_M], weights_M[order_M], starts_S1)


def gather_gradients(
    grad_BD: Tensor, values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute both gradients of `weighted_gather`; as kernels in one pass over the reads.

    Returns:
        grad_SD of the whole table, in its dtype and zero for rows that were not read, summed in
        float32 (float64 for a float64 table). grad_BK in the weights' dtype.
    """
    if use_kernels(values_SD, grad_BD):
        from triptych.models.remember.values.kernels.launches import Segments, segment_sums

        num_slots = values_SD.shape[0]
        sorted_M, order_M = _sort(ids_BK.flatten(), num_slots)
        grad_SD, dots_M = segment_sums(
            Segments(_row_starts(sorted_M, num_slots), order_M),
            weights_BK.flatten(),
            grad_BD,
            ids_BK.shape[1],
            values_SD.dtype,
            values_SD,
        )
        assert dots_M is not None
        return grad_SD, dots_M.view_as(ids_BK).to(weights_BK.dtype)
    grad_BK = weight_gradient(grad_BD, values_SD, ids_BK).to(weights_BK.dtype)
    return table_gradient(grad_BD, values_SD, ids_BK, weights_BK), grad_BK


def table_gradient(
    grad_BD: Tensor, values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor
) -> Tensor:
    """Compute the gradient of the whole table alone; see `gather_gradients`."""
    num_bags, num_reads = ids_BK.shape
    exact = torch.promote_types(values_SD.dtype, torch.float32)
    bags_M = torch.arange(num_bags, device=ids_BK.device).repeat_interleave(num_reads)
    uses = (ids_BK.flatten(), bags_M, weights_BK.flatten(), grad_BD.to(exact))
    if values_SD.dtype == exact:
        return dense_transposed_gather(*uses, values_SD.shape[0])
    # Only the rows read are summed in the wider dtype.
    rows_U, sums_UD = transposed_gather(*uses, values_SD.shape[0])
    grad_SD = torch.zeros_like(values_SD)
    grad_SD[rows_U] = sums_UD.to(values_SD.dtype)
    return grad_SD


def _sort(rows_M: Tensor, num_rows: int) -> tuple[Tensor, Tensor]:
    """Sort reads by row, in narrow integers for speed; stable, so that sums repeat to the bit."""
    narrow = rows_M.int() if num_rows <= _LARGEST_INT32 else rows_M
    sorted_M, order_M = torch.sort(narrow, stable=True)
    return sorted_M, order_M


def _row_starts(sorted_M: Tensor, num_rows: int) -> Tensor:
    """Return where the reads of each row start among sorted reads, and the end of the last."""
    if sorted_M.device.type == "cpu":
        return F.pad(torch.bincount(sorted_M, minlength=num_rows).cumsum(0), (1, 0))
    # `bincount` would wait for the device to know its largest number.
    rows_S1 = torch.arange(num_rows + 1, device=sorted_M.device, dtype=sorted_M.dtype)
    return torch.searchsorted(sorted_M, rows_S1)


def _starts(ids_BK: Tensor) -> Tensor:
    """Return the start of each bag, and the end of the last."""
    num_bags, num_reads = ids_BK.shape
    return torch.arange(num_bags + 1, device=ids_BK.device) * num_reads


def _has_sampled_product(dense: Tensor, num_reads: int) -> bool:
    return (
        dense.device.type == "cpu"
        and dense.dtype in _SAMPLED_PRODUCT_DTYPES
        and max(num_reads, dense.shape[0]) <= _LARGEST_INT32
    )


def _csr(starts: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """Build a CSR matrix without torch's warning that the layout is in beta."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        return torch.sparse_csr_tensor(
            starts, columns, values, (starts.numel() - 1, num_columns), check_invariants=False
        )
