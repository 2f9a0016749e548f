"""The memory-bound core: y[b] = sum_k w[b, k] * V[ids[b, k]], forward and its two transposes.

Each table row is read once per use and no (B, K, D) tensor is ever formed:

- forward: one `embedding_bag`, B * K rows read;
- gradient of w: a sampled matrix product (only the B * K entries of G V^T that exist);
- gradient of V: the same gather transposed. Uses are sorted by row, then each row gathers
  the output gradients of the tokens that read it. No atomics, so the result is deterministic,
  and it is as small as the set of rows that were read.
"""

import warnings

import torch
import torch.nn.functional as F
from torch import Tensor

# Shapes: B bags (tokens), K reads a bag, D width, S slots, M reads in all, U distinct rows read

# Temporaries of this size stay within what the allocator reuses; larger ones are returned to the
# system and faulted in again page by page, which costs more than filling them.
_ROWS_BYTES_PER_CHUNK = 8 << 20
_SAMPLED_PRODUCT_DTYPES = (torch.float32, torch.float64)


def weighted_gather(values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Sum the named rows with the given weights, without gradient.

    Args:
        values_SD: The table, float32, float64, bfloat16 or float16.
        ids_BK: int64 in [0, S).
        weights_BK: Weights; rounded to the table's dtype.

    Returns:
        y_BD in the table's dtype.

    >>> weighted_gather(torch.eye(3), torch.tensor([[0, 2]]), torch.tensor([[2.0, 0.5]])).tolist()
    [[2.0, 0.0, 0.5]]
    """
    return F.embedding_bag(
        ids_BK, values_SD, per_sample_weights=weights_BK.to(values_SD.dtype), mode="sum"
    )


def weight_gradient(grad_BD: Tensor, values_SD: Tensor, ids_BK: Tensor) -> Tensor:
    """Gradient of the weights: dot products of each output gradient with the rows it read.

    Returns:
        grad_BK in the table's dtype.
    """
    num_bags, num_reads = ids_BK.shape
    flat_M = ids_BK.reshape(-1)
    grad_BD = grad_BD.to(values_SD.dtype)
    starts_B1 = torch.arange(0, flat_M.numel() + 1, num_reads, device=ids_BK.device)
    exact_on_cpu = values_SD.device.type == "cpu" and values_SD.dtype in _SAMPLED_PRODUCT_DTYPES
    # A sparse matrix cannot hold more entries a row than it has columns.
    if exact_on_cpu and num_reads <= values_SD.shape[0]:
        reads = _csr(starts_B1, flat_M, grad_BD.new_zeros(flat_M.numel()), values_SD.shape[0])
        dots = torch.sparse.sampled_addmm(reads, grad_BD, values_SD.t(), beta=0.0)
        return dots.values().view(num_bags, num_reads)
    bags_M = torch.arange(num_bags, device=ids_BK.device).repeat_interleave(num_reads)
    dots_M: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad_BD.contiguous(), values_SD, flat_M, starts_B1[:-1], bags_M, 0
    )
    return dots_M.view(num_bags, num_reads)


def transposed_gather(
    rows_M: Tensor, bags_M: Tensor, weights_M: Tensor, grad_BD: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of the table, compact: for each row that was read, sum_m weights[m] * grad[bag[m]].

    Args:
        rows_M: int64, the row of each read.
        bags_M: int64 in [0, B), the output that read it.
        weights_M: Its weight.
        grad_BD: Output gradients.

    Returns:
        rows_U: int64, distinct, ascending. sums_UD: in grad's dtype.

    >>> rows, sums = transposed_gather(torch.tensor([7, 2, 7]), torch.tensor([0, 0, 1]),
    ...     torch.tensor([1.0, 2.0, 3.0]), torch.tensor([[1.0], [10.0]]))
    >>> rows.tolist(), sums.tolist()
    ([2, 7], [[2.0], [31.0]])
    """
    if rows_M.numel() == 0:
        return rows_M, grad_BD.new_zeros(0, grad_BD.shape[1])
    # A stable sort keeps the order of the reads, so sums do not depend on the sort's inside.
    narrow = rows_M.int() if int(rows_M.max()) < 2**31 else rows_M
    sorted_M, order_M = torch.sort(narrow, stable=True)
    rows_U, counts_U = torch.unique_consecutive(sorted_M, return_counts=True)
    ends_U = counts_U.cumsum(0)
    starts_U = ends_U - counts_U
    bags_M, weights_M = bags_M[order_M], weights_M[order_M].to(grad_BD.dtype)
    sums_UD = grad_BD.new_empty(rows_U.numel(), grad_BD.shape[1])
    row_bytes = grad_BD.shape[1] * grad_BD.element_size()
    step = max(1, _ROWS_BYTES_PER_CHUNK // row_bytes)
    if grad_BD.device.type != "cpu":
        step = rows_U.numel()
    for start in range(0, rows_U.numel(), step):
        stop = min(start + step, rows_U.numel())
        first, last = int(starts_U[start]), int(ends_U[stop - 1])
        sums_UD[start:stop] = F.embedding_bag(
            bags_M[first:last],
            grad_BD,
            starts_U[start:stop] - first,
            per_sample_weights=weights_M[first:last],
            mode="sum",
        )
    return rows_U.long(), sums_UD


def _csr(starts: Tensor, columns: Tensor, values: Tensor, num_columns: int) -> Tensor:
    """Build a CSR matrix; torch announces once that its CSR layout is in beta, which we know."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse CSR tensor support", category=UserWarning)
        return torch.sparse_csr_tensor(
            starts, columns, values, (starts.numel() - 1, num_columns), check_invariants=False
        )
