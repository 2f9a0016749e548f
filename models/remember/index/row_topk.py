"""Top-k along the last dimension that is fast on a CPU too.

On a CPU `torch.topk` compares one scalar at a time. NumPy sorts integers with vector instructions,
five times faster at 256 columns. So each score and its column are packed into one integer, sorted,
and unpacked. Wider rows are first narrowed to the groups of columns with the highest maxima, which
hold all winners. The work is done block by block in the cache, with as many threads as torch has,
so that threads synchronise only once.
"""

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any, TypeAlias

import numpy as np
import torch
from torch import Tensor

# Shapes: R rows, N columns, K kept, G groups of columns, J members of a group, C candidates

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

# NumPy sorts rows up to this width by a branch-free network; wider rows cost several times more per
# element.
_SORTED_WIDTH = 256
# `torch.topk` handles fewer elements, such as a few queries in generation.
_LEAST_ELEMENTS = 1 << 15
# Elements of a block, small enough for the cache.
_BLOCK_ELEMENTS = 1 << 18
_MAGNITUDE = np.int32(0x7FFFFFFF)


def row_topk(scores: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Find the K highest of N scores in the last dimension, without gradient.

    Args:
        scores: float, (..., N); NaN counts as the highest.
        num_kept: K, at most N.

    Returns:
        best: (..., K), the exact scores, descending. columns: int64 (..., K). The order of equal
        scores depends on the device and on the number of elements.

    >>> row_topk(torch.tensor([1.0, 3.0, 2.0]), 2)[1].tolist()
    [1, 2]
    """
    on_cpu = scores.device.type == "cpu"
    if not on_cpu or scores.dtype == torch.float64 or scores.numel() < _LEAST_ELEMENTS:
        best, columns = scores.topk(num_kept, dim=-1)
        return best, columns
    sorted_by_numpy: tuple[Tensor, Tensor] = _numpy_topk(scores, num_kept)
    return sorted_by_numpy


@torch.compiler.disable  # type: ignore[untyped-decorator]  # it would trace NumPy and the threads
def _numpy_topk(scores: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    shape = (*scores.shape[:-1], num_kept)
    rows_RN = scores.detach().float().reshape(-1, scores.shape[-1]).contiguous().numpy()
    best = torch.empty(shape, dtype=torch.float32)
    columns = torch.empty(shape, dtype=torch.int64)
    best_RK, columns_RK = (made.view(-1, num_kept).numpy() for made in (best, columns))

    def fill(rows: slice) -> None:
        best_RK[rows], columns_RK[rows] = _topk(rows_RN[rows], num_kept)

    _for_each_block(fill, *rows_RN.shape)
    return best.to(scores.dtype), columns


def _topk(scores_RN: Array, num_kept: int) -> tuple[Array, Array]:
    num_rows, num_columns = scores_RN.shape
    width = max(_SORTED_WIDTH, 2 * num_kept)
    if num_columns <= width:
        return _sorted_topk(scores_RN, num_kept)
    # Column c belongs to group c mod G. If a winner were outside the K groups with the highest
    # maxima, each of these groups would hold a score at least as high.
    num_members = -(-num_columns // width)
    num_groups = -(-num_columns // num_members)
    missing = num_members * num_groups - num_columns
    if missing:
        scores_RN = np.pad(scores_RN, ((0, 0), (0, missing)), constant_values=-np.inf)
    maxima_RG = scores_RN.reshape(num_rows, num_members, num_groups).max(1)
    _, groups_RK = _sorted_topk(maxima_RG, num_kept)
    firsts_J1 = np.arange(num_members)[:, None] * num_groups
    columns_RC = (groups_RK[:, None] + firsts_J1).reshape(num_rows, -1)
    best_RK, places_RK = _topk(_take(scores_RN, columns_RC), num_kept)
    return best_RK, _take(columns_RC, places_RK)


def _sorted_topk(scores_RN: Array, num_kept: int) -> tuple[Array, Array]:
    """Sort each row's (score, column) pairs, packed into integers that sort best first."""
    if np.isnan(scores_RN.max(initial=-np.inf)):
        # The sign of a NaN is arbitrary; a positive one is above infinity in the order below.
        scores_RN = np.where(np.isnan(scores_RN), np.float32(np.nan), scores_RN)
    bits_RN = scores_RN.view(np.int32)
    # Floats have the order of their bits, negative ones the reverse order.
    order_RN = bits_RN >> 31
    order_RN &= _MAGNITUDE
    order_RN ^= bits_RN
    np.invert(order_RN, out=order_RN)
    packed_RN = order_RN.astype(np.int64)
    packed_RN <<= 32
    packed_RN |= np.arange(scores_RN.shape[1])
    packed_RN.sort(axis=1)
    packed_RK = packed_RN[:, :num_kept]
    order_RK = ~(packed_RK >> 32).astype(np.int32)
    order_RK ^= (order_RK >> 31) & _MAGNITUDE
    return order_RK.view(np.float32), packed_RK & 0xFFFFFFFF


def _take(values_RN: Array, columns_RC: Array) -> Array:
    """Take each row's values at its columns; faster than `np.take_along_axis`."""
    starts_R1 = np.arange(len(values_RN))[:, None] * values_RN.shape[1]
    # Columns are in range; "wrap" only avoids the copy of NumPy's bounds check.
    taken: Array = values_RN.ravel().take(columns_RC + starts_R1, mode="wrap")
    return taken


def _for_each_block(fill: Callable[[slice], None], num_rows: int, num_columns: int) -> None:
    """Call `fill` for each block of rows, on as many threads as torch uses."""
    step = max(1, _BLOCK_ELEMENTS // num_columns)
    blocks = [slice(start, start + step) for start in range(0, num_rows, step)]
    num_threads = min(torch.get_num_threads(), len(blocks))
    if num_threads < 2:
        for rows in blocks:
            fill(rows)
    else:
        list(_workers(os.getpid(), torch.get_num_threads()).map(fill, blocks))


@lru_cache(maxsize=1)
def _workers(process_id: int, num_threads: int) -> ThreadPoolExecutor:
    """Create the threads for the blocks; a forked process needs new ones."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="row_topk")
