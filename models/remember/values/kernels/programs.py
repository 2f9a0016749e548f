"""The Triton programs. Sums are float32 and in a fixed order; there are no atomics.

Rows are addressed in 64 bits. Columns are cut into blocks, one program each, so any width works.
"""

# Shapes: B bags, K reads of a bag, M all reads, D width, R rows that are summed, P pieces of rows

import triton
import triton.language as tl


@triton.jit
def gather_program(
    out_BD,
    ids_BK,
    weights_BK,
    table_SD,
    num_reads,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sum the rows of one bag, TILE rows at a time so that many loads are in flight."""
    bag = tl.program_id(0).to(tl.int64)
    cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = cols < WIDTH
    total = tl.zeros([BLOCK], tl.float32)
    for first in range(0, num_reads, TILE):
        reads = first + tl.arange(0, TILE)
        valid = reads < num_reads
        rows = tl.load(ids_BK + bag * num_reads + reads, mask=valid, other=0).to(tl.int64)
        weights = tl.load(weights_BK + bag * num_reads + reads, mask=valid, other=0.0)
        # As torch's operation: weights are rounded to the dtype of the table.
        weights = weights.to(table_SD.dtype.element_ty).to(tl.float32)
        values = tl.load(
            table_SD + rows[:, None] * WIDTH + cols[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(weights[:, None] * values.to(tl.float32), 0)
    tl.store(out_BD + bag * WIDTH + cols, total.to(out_BD.dtype.element_ty), mask=inside)


@triton.jit
def dots_program(
    dots_BK,
    ids_BK,
    grad_BD,
    table_SD,
    num_reads,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Multiply the output gradient of one bag with the TILE rows that it read."""
    bag = tl.program_id(0).to(tl.int64)
    reads = tl.program_id(1) * TILE + tl.arange(0, TILE)
    valid = reads < num_reads
    rows = tl.load(ids_BK + bag * num_reads + reads, mask=valid, other=0).to(tl.int64)
    total = tl.zeros([TILE], tl.float32)
    for first in range(0, WIDTH, BLOCK):
        cols = first + tl.arange(0, BLOCK)
        inside = cols < WIDTH
        grad = tl.load(grad_BD + bag * WIDTH + cols, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(
            table_SD + rows[:, None] * WIDTH + cols[None, :],
            mask=valid[:, None] & inside[None, :],
            other=0.0,
        )
        total += tl.sum(grad[None, :] * values.to(tl.float32), 1)
    tl.store(dots_BK + bag * num_reads + reads, total.to(dots_BK.dtype.element_ty), mask=valid)


@triton.jit
def segment_program(
    sums_RD,
    partial_QD,
    dots_CM,
    rows_R,
    starts_R1,
    piece_starts_R1,
    partial_starts_R1,
    row_of_piece_P,
    order_M,
    bags_M,
    weights_M,
    grad_BD,
    values_SD,
    num_rows,
    num_uses,
    READS: tl.constexpr,
    LENGTH: tl.constexpr,
    HAS_ROWS: tl.constexpr,
    HAS_DOTS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
    TILE: tl.constexpr,
):
    """Sum a piece of the sorted uses of one row; with HAS_DOTS also form their dot products.

    A row with more than LENGTH uses has several pieces, whose sums `combine_program` adds. READS is
    K where every bag has K reads, so that the bag follows from the use; else 0.
    """
    piece = tl.program_id(0)
    if piece < tl.load(piece_starts_R1 + num_rows):
        cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = cols < WIDTH
        index = tl.load(row_of_piece_P + piece).to(tl.int64)
        nth = piece - tl.load(piece_starts_R1 + index)
        start = tl.load(starts_R1 + index) + nth * LENGTH
        end = tl.minimum(start + LENGTH, tl.load(starts_R1 + index + 1))
        value = tl.zeros([BLOCK], tl.float32)
        if HAS_DOTS:
            row = index
            if HAS_ROWS:
                row = tl.load(rows_R + index).to(tl.int64)
            value = tl.load(values_SD + row * WIDTH + cols, mask=inside, other=0.0).to(tl.float32)
        total = tl.zeros([BLOCK], tl.float32)
        for first in range(start, end, TILE):
            at = first + tl.arange(0, TILE)
            valid = at < end
            use = tl.load(order_M + at, mask=valid, other=0).to(tl.int64)
            if READS > 0:
                bag = use // READS
            else:
                bag = tl.load(bags_M + use, mask=valid, other=0).to(tl.int64)
            weight = tl.load(weights_M + use, mask=valid, other=0.0).to(tl.float32)
            grad = tl.load(
                grad_BD + bag[:, None] * WIDTH + cols[None, :],
                mask=valid[:, None] & inside[None, :],
                other=0.0,
            ).to(tl.float32)
            total += tl.sum(weight[:, None] * grad, 0)
            if HAS_DOTS:
                place = tl.program_id(1).to(tl.int64) * num_uses + use
                tl.store(dots_CM + place, tl.sum(grad * value[None, :], 1), mask=valid)
        partial = tl.load(partial_starts_R1 + index)
        if tl.load(partial_starts_R1 + index + 1) > partial:
            place = (partial + nth).to(tl.int64)
            tl.store(partial_QD + place * WIDTH + cols, total, mask=inside)
        else:
            found = total.to(sums_RD.dtype.element_ty)
            tl.store(sums_RD + index * WIDTH + cols, found, mask=inside)


@triton.jit
def combine_program(
    sums_RD,
    partial_QD,
    partial_starts_R1,
    WIDTH: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Add the pieces of one row in their order; a row of one piece is complete already."""
    index = tl.program_id(0).to(tl.int64)
    start = tl.load(partial_starts_R1 + index)
    end = tl.load(partial_starts_R1 + index + 1)
    if end > start:
        cols = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
        inside = cols < WIDTH
        total = tl.zeros([BLOCK], tl.float32)
        for piece in range(start, end):
            place = piece * WIDTH  # 64 bits, as the starts
            total += tl.load(partial_QD + place + cols, mask=inside, other=0.0)
        found = total.to(sums_RD.dtype.element_ty)
        tl.store(sums_RD + index * WIDTH + cols, found, mask=inside)
