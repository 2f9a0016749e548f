"""The slots: a table of value vectors, read by a weighted gather."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from triptych.models.remember.values.gather_op import gather_op
from triptych.models.remember.values.weighted_gather import (
    gather_gradients,
    table_gradient,
    transposed_gather,
    weight_gradient,
    weighted_gather,
)

# Shapes: B tokens, K slots read per token (all heads), D value width, S slots, U rows


class RowGradient(NamedTuple):
    """A compact gradient of the table: some rows and their gradients."""

    rows_U: Tensor
    grad_UD: Tensor


class SlotReads(NamedTuple):
    """The reads of one backward pass, which give the gradient of any set of rows.

    `ids_BK` holds all accesses of the forward pass in the order of its tokens. Sparse memory
    finetuning counts these.
    """

    ids_BK: Tensor
    weights_BK: Tensor
    grad_BD: Tensor


class ValueTable(nn.Module):
    """S value vectors, shared by all memory layers that get this table.

    Kernels or sharding can be changed here alone: layers only call `forward`, and optimizers only
    read `weight.grad` (dense) or `row_gradient` (selected rows).

    Args:
        num_slots: S.
        value_dim: D, any width.
        gradient: `dense` gives `weight.grad` of the table's full size, for any optimizer.
            `selected_rows` forms no dense gradient. Each backward pass keeps its reads, and
            `row_gradient` forms one compact gradient from all reads since the last `clear_reads`,
            of given rows or of all rows read. Use it if the rows to learn are known only after the
            last micro-batch, as in sparse memory finetuning.
        dtype: float32 or bfloat16. A bfloat16 table halves the bytes read; its gradients are
            still summed in float32.

    Raises:
        ValueError: if a size is not positive or the gradient mode is unknown.

    Init: N(0, D^-1/2) (facebookresearch/memory, `HashingMemory`).
    Deviation: layers get the table by their constructor, not from a class variable.
    """

    def __init__(
        self,
        num_slots: int,
        value_dim: int,
        gradient: Literal["dense", "selected_rows"] = "dense",
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if num_slots < 1 or value_dim < 1:
            raise ValueError(
                f"a value table needs at least one slot and one dimension, "
                f"got num_slots={num_slots}, value_dim={value_dim}"
            )
        self.num_slots = num_slots
        self.value_dim = value_dim
        self.weight = nn.Parameter(torch.empty(num_slots, value_dim, dtype=dtype))
        self.reads: list[SlotReads] = []
        self._anchor: tuple[Tensor | None] = (None,)  # in a tuple, so that it is not registered
        self.counted_mask_B: Tensor | None = None  # see `counting_only`
        self.set_gradient(gradient)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise the values again."""
        nn.init.normal_(self.weight, std=self.value_dim**-0.5)

    def set_gradient(self, gradient: Literal["dense", "selected_rows"]) -> None:
        """Set the form of the table's gradient; drops the present reads."""
        if gradient not in ("dense", "selected_rows"):
            raise ValueError(f"gradient must be 'dense' or 'selected_rows', got {gradient!r}")
        self.gradient = gradient
        self.clear_reads()

    @property
    def anchor(self) -> Tensor | None:
        """The scalar that represents the table in autograd, if set."""
        return self._anchor[0]

    def set_anchor(self, anchor: Tensor | None) -> None:
        """Record reads in `selected_rows` mode although `weight` is frozen.

        The backward pass records reads, and it runs only if an input requires a gradient. If the
        weight did, a data-parallel reducer and every optimizer would process the whole table. So
        the weight is frozen, and this scalar requires the gradient instead.

        Args:
            anchor: Scalar that requires grad, the same for all tables of a model. It is not
                registered as a parameter here. Its gradient is 0, or NaN if the gradient of the
                output is not finite, so that a gradient scaler notices. None: no anchor.

        Raises:
            ValueError: if it is not a scalar.
        """
        if anchor is not None and anchor.dim() != 0:
            raise ValueError(f"the anchor must be a scalar, got the shape {tuple(anchor.shape)}")
        self._anchor = (anchor,)

    def forward(self, ids_BK: Tensor, weights_BK: Tensor) -> Tensor:
        """Read rows: y[b] = sum_k weights[b, k] * weight[ids[b, k]].

        Args:
            ids_BK: int64 in [0, S).
            weights_BK: float; gradients flow to them.

        Returns:
            y_BD in the table's dtype.
        """
        if torch.compiler.is_compiling() and (
            self.gradient == "dense" or not torch.is_grad_enabled()
        ):
            read_BD: Tensor = gather_op(self.weight, ids_BK, weights_BK)  # no graph break
            return read_BD
        anchor = self.anchor if self.gradient == "selected_rows" else None
        y_BD: Tensor = _Gather.apply(  # type: ignore[no-untyped-call]
            self.weight, ids_BK, weights_BK, anchor, self
        )
        return y_BD

    def row_gradient(self, rows: Tensor | None = None) -> RowGradient:
        """Form the gradient of the reads kept since the last `clear_reads`.

        Args:
            rows: int64, distinct; only these rows get a gradient (zero for rows that were not
                read). None: all rows read.

        Raises:
            RuntimeError: if the table is not in `selected_rows` mode.

        Returns:
            Rows ascending, and their gradients in float32 (float64 for a float64 table).
        """
        if self.gradient != "selected_rows":
            raise RuntimeError("row_gradient needs ValueTable(gradient='selected_rows')")
        exact = torch.promote_types(self.weight.dtype, torch.float32)
        if rows is not None:
            rows = rows.sort().values
        if not self.reads:
            found = torch.empty(0, dtype=torch.int64, device=self.weight.device)
            sums = torch.empty(0, self.value_dim, dtype=exact, device=self.weight.device)
        else:
            ids_M, bags_M, weights_M = _flatten(self.reads, self._uses_of(rows))
            grad_BD = torch.cat([reads.grad_BD for reads in self.reads]).to(exact)
            found, sums = transposed_gather(ids_M, bags_M, weights_M, grad_BD, self.num_slots)
        if rows is None:
            return RowGradient(found, sums)
        full = sums.new_zeros(rows.numel(), self.value_dim)
        full[torch.searchsorted(rows, found)] = sums
        return RowGradient(rows, full)

    def _uses_of(self, rows: Tensor | None) -> list[Tensor] | None:
        """Find the flattened reads of these rows in each backward pass; None: all."""
        if rows is None:
            return None
        wanted_S = torch.zeros(self.num_slots, dtype=torch.bool, device=rows.device)
        wanted_S[rows] = True
        return [wanted_S[reads.ids_BK.flatten()].nonzero().squeeze(1) for reads in self.reads]

    def clear_reads(self) -> None:
        """Drop the reads; call this after each optimizer step."""
        self.reads = []

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return (
            f"num_slots={self.num_slots}, value_dim={self.value_dim}, "
            f"gradient={self.gradient!r}, dtype={self.weight.dtype}"
        )


class _Gather(torch.autograd.Function):
    """The weighted gather and its backward in the table's mode."""

    @staticmethod
    def forward(
        ctx: Any,
        values_SD: Tensor,
        ids_BK: Tensor,
        weights_BK: Tensor,
        anchor: Tensor | None,
        table: ValueTable,
    ) -> Tensor:
        # Saved only if needed, since rows may change between forward and backward.
        needed = values_SD if ctx.needs_input_grad[2] else None
        ctx.save_for_backward(needed, ids_BK, weights_BK)
        ctx.table, ctx.counted_mask_B = table, table.counted_mask_B
        return weighted_gather(values_SD, ids_BK, weights_BK)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, ...]:
        values_SD, ids_BK, weights_BK = ctx.saved_tensors
        table: ValueTable = ctx.table
        grad_BD = grad_BD.contiguous()
        grad_values = grad_weights = grad_anchor = None
        dense = ctx.needs_input_grad[0] and table.gradient == "dense"
        if dense and ctx.needs_input_grad[2]:
            grad_values, grad_weights = gather_gradients(grad_BD, values_SD, ids_BK, weights_BK)
        elif ctx.needs_input_grad[2]:
            grad_weights = weight_gradient(grad_BD, values_SD, ids_BK).to(weights_BK.dtype)
        if ctx.needs_input_grad[3]:
            grad_anchor = grad_BD.sum(dtype=torch.promote_types(grad_BD.dtype, torch.float32)) * 0
        if dense and grad_values is None:
            grad_values = table_gradient(grad_BD, table.weight, ids_BK, weights_BK)
        elif not dense and (ctx.needs_input_grad[0] or ctx.needs_input_grad[3]):
            reads = SlotReads(ids_BK, weights_BK.detach(), grad_BD)
            table.reads.append(_only(reads, ctx.counted_mask_B))
        return grad_values, None, grad_weights, grad_anchor, None


@contextmanager
def counting_only(tables: Sequence[ValueTable], keep_mask_B: Tensor) -> Iterator[None]:
    """Exclude padding from the recorded reads of passes inside this context.

    Callers that pad a batch internally need this. Outputs and gradients do not change, since
    nothing depends on the reads of padding.

    Args:
        tables: The tables.
        keep_mask_B: bool, one entry per token of the pass; True marks tokens that count.
    """
    before = [table.counted_mask_B for table in tables]
    for table in tables:
        table.counted_mask_B = keep_mask_B
    try:
        yield
    finally:
        for table, mask_B in zip(tables, before, strict=True):
            table.counted_mask_B = mask_B


def _only(reads: SlotReads, keep_mask_B: Tensor | None) -> SlotReads:
    if keep_mask_B is None:
        return reads
    kept = keep_mask_B.nonzero().squeeze(1)  # once: a GPU waits for the number of tokens
    return SlotReads(*(tensor[kept] for tensor in reads))


def _flatten(
    all_reads: list[SlotReads], uses: list[Tensor] | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Concatenate the reads of several backward passes: rows, tokens and weights.

    Args:
        all_reads: The backward passes.
        uses: Indices of the flattened reads to take from each pass, ascending; None: all.
    """
    ids, bags, weights, num_bags = [], [], [], 0
    for number, reads in enumerate(all_reads):
        count, width = reads.ids_BK.shape
        if uses is None:
            tokens = torch.arange(num_bags, num_bags + count, device=reads.ids_BK.device)
            ids.append(reads.ids_BK.reshape(-1))
            bags.append(tokens.repeat_interleave(width))
            weights.append(reads.weights_BK.reshape(-1))
        else:
            kept = uses[number]
            ids.append(reads.ids_BK.reshape(-1)[kept])
            bags.append(kept // width + num_bags)
            weights.append(reads.weights_BK.reshape(-1)[kept])
        num_bags += count
    return torch.cat(ids), torch.cat(bags), torch.cat(weights)
