"""Functions of tensors that launch the Triton programs."""

# Shapes: B bags, K reads of a bag, M all reads, D width, S slots, R rows that are summed

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from triptych.models.remember.values.kernels.programs import (
    combine_program,
    dots_program,
    gather_program,
    segment_program,
)

#: A row with more uses is summed in pieces by several programs, so that none runs for long.
LONGEST_PIECE = 256
_BLOCKS = (1024, 512, 256, 128, 64, 32, 16)
_MOST_PADDING = 1.34


class Tiling(NamedTuple):
    """How a program is cut: columns, rows at a time, and warps."""

    block: int
    tile: int
    warps: int


def tiling(width: int) -> Tiling:
    """Choose the columns of a program: the most with little padding, 16 bytes a thread and load.

    >>> tiling(1024), tiling(576).block, tiling(96).block
    (Tiling(block=1024, tile=4, warps=4), 256, 128)
    """
    block = next((b for b in _BLOCKS if -(-width // b) * b <= _MOST_PADDING * width), 16)
    return Tiling(block, 4 if block > 512 else 8, max(1, min(4, block // 256)))


def gather(values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Compute `weighted_gather`: each row read once per use, sums in float32."""
    num_bags, num_reads = ids_BK.shape
    width = values_SD.shape[1]
    values_SD = values_SD.contiguous()
    out_BD = values_SD.new_empty(num_bags, width)
    cut = tiling(width)
    if out_BD.numel():
        gather_program[num_bags, triton.cdiv(width, cut.block)](
            out_BD,
            ids_BK.contiguous(),
            weights_BK.contiguous(),
            values_SD,
            num_reads,
            **_settings(width, cut),
        )
    return out_BD


def weight_dots(grad_BD: Tensor, values_SD: Tensor, ids_BK: Tensor) -> Tensor:
    """Compute the gradient of the weights alone, (B, K) in float32, without a sort."""
    num_bags, num_reads = ids_BK.shape
    width = values_SD.shape[1]
    dots_BK = grad_BD.new_empty(ids_BK.shape, dtype=torch.float32)
    cut = tiling(width)
    if dots_BK.numel():
        dots_program[num_bags, triton.cdiv(num_reads, cut.tile)](
            dots_BK,
            ids_BK.contiguous(),
            grad_BD.contiguous(),
            values_SD.contiguous(),
            num_reads,
            **_settings(width, cut),
        )
    return dots_BK


class Segments(NamedTuple):
    """Uses sorted by the row that they add to.

    Attributes:
        starts_R1: int64, the first sorted use of each row, and the end of the last.
        order_M: Use at each sorted position; stable, so that sums repeat to the bit.
        rows_R: Slot of each row; None: row r is slot r.
    """

    starts_R1: Tensor
    order_M: Tensor
    rows_R: Tensor | None = None


def segment_sums(
    segments: Segments,
    weights_M: Tensor,
    grad_BD: Tensor,
    bags_M: Tensor | int,
    dtype: torch.dtype,
    values_SD: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Sum weighted output gradients by row; with values also form the gradient of the weights.

    Both come from one read of each output gradient.

    Args:
        weights_M: Weight of each use, in the order before the sort.
        grad_BD: Output gradients.
        bags_M: Bag of each use; or K, where each bag has K uses.
        dtype: Of the sums.
        values_SD: The table.

    Returns:
        sums_RD, zero for rows without a use; dots_M in float32, or None.
    """
    num_rows, num_uses = len(segments.starts_R1) - 1, len(weights_M)
    width, device = grad_BD.shape[1], grad_BD.device
    sums_RD = grad_BD.new_empty(num_rows, width, dtype=dtype)
    cut = tiling(width)
    num_blocks = triton.cdiv(width, cut.block)
    dots_CM = None
    if values_SD is not None:
        dots_CM = torch.empty(num_blocks, num_uses, dtype=torch.float32, device=device)
        values_SD = values_SD.contiguous()
    if num_uses == 0 or sums_RD.numel() == 0:
        return sums_RD.zero_(), None if dots_CM is None else dots_CM.sum(0)
    pieces_R = (segments.starts_R1.diff() + LONGEST_PIECE - 1).div(
        LONGEST_PIECE, rounding_mode="floor"
    )
    pieces_R = pieces_R.clamp(min=1)  # a row without a use becomes zero
    piece_starts_R1 = F.pad(pieces_R.cumsum(0), (1, 0))
    partial_starts_R1 = F.pad((pieces_R * (pieces_R > 1)).cumsum(0), (1, 0))
    # Bounds that follow from the sizes: the exact numbers would make the host wait for the device.
    most_pieces = num_rows + num_uses // LONGEST_PIECE
    most_partials = 2 * num_uses // LONGEST_PIECE + 1
    row_of_piece_P = torch.searchsorted(
        piece_starts_R1[1:], torch.arange(most_pieces, device=device), right=True
    ).clamp_(max=num_rows - 1)
    partial_QD = torch.empty(most_partials, width, dtype=torch.float32, device=device)
    fixed = isinstance(bags_M, int)
    placeholder = segments.order_M
    segment_program[most_pieces, num_blocks](
        sums_RD,
        partial_QD,
        partial_QD if dots_CM is None else dots_CM,
        placeholder if segments.rows_R is None else segments.rows_R,
        segments.starts_R1,
        piece_starts_R1,
        partial_starts_R1,
        row_of_piece_P,
        segments.order_M,
        placeholder if isinstance(bags_M, int) else bags_M.contiguous(),
        weights_M.contiguous(),
        grad_BD.contiguous(),
        grad_BD if values_SD is None else values_SD,
        num_rows,
        num_uses,
        READS=bags_M if fixed else 0,
        LENGTH=LONGEST_PIECE,
        HAS_ROWS=segments.rows_R is not None,
        HAS_DOTS=dots_CM is not None,
        **_settings(width, cut),
    )
    settings = _settings(width, cut)
    del settings["TILE"]
    combine_program[num_rows, num_blocks](sums_RD, partial_QD, partial_starts_R1, **settings)
    if dots_CM is None:
        return sums_RD, None
    return sums_RD, dots_CM[0] if num_blocks == 1 else dots_CM.sum(0)


def _settings(width: int, cut: Tiling) -> dict[str, Any]:
    return {
        "WIDTH": width,
        "BLOCK": cut.block,
        "TILE": cut.tile,
        "num_warps": cut.warps,
        "enable_fp_fusion": True,
    }
