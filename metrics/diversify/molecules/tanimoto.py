"""Tanimoto similarities of many fingerprints in tiles, without an N x N matrix.

The bits of a tile are unpacked and intersected by one matrix product, which is exact. It is an int8
product on CPUs with int8 dot products (VNNI), float32 on other CPUs, and float16 on a GPU. Float16
is exact up to 2048 common bits; beyond that, float32 is used.

Shapes: N molecules, R rows and C columns of a tile, K bits, W = K / 64 words
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.fingerprints import count_bits, unpack

TILE = 512
TILES_ON_ACCELERATOR = 8  # larger tiles there, so that fewer kernels are started
MOST_UNPACKED_TILES = 64
LARGEST_FLOAT16_COUNT = 2048


@dataclass(frozen=True)
class Bits:
    """Fingerprints unpacked for matrix products.

    Attributes:
        bits_NK: Zeros and ones, in the dtype of the product.
        counts_N: Numbers of set bits, float32.
    """

    bits_NK: Tensor
    counts_N: Tensor


def unpacked(packed_NW: Tensor) -> Bits:
    """Unpack fingerprints for products on their device."""
    counts_N = count_bits(packed_NW)
    most = int(counts_N.max()) if len(counts_N) else 0
    dtype = _product_dtype(packed_NW.device, most)
    return Bits(unpack(packed_NW).to(dtype), counts_N.float())


def intersections(rows: Bits, columns: Bits) -> Tensor:
    """Count the common bits of rows and columns, float32 (R, C), exact."""
    if rows.bits_NK.dtype == torch.int8 == columns.bits_NK.dtype:
        return torch._int_mm(rows.bits_NK, columns.bits_NK.T).float()
    dtype = torch.promote_types(rows.bits_NK.dtype, columns.bits_NK.dtype)
    return (rows.bits_NK.to(dtype) @ columns.bits_NK.to(dtype).T).float()


def similarities(rows: Bits, columns: Bits, both_empty: float = 1.0) -> Tensor:
    """Compute Tanimoto similarities, float32 (R, C).

    Args:
        rows: Fingerprints of the result's rows.
        columns: Fingerprints of its columns.
        both_empty: Similarity of two empty fingerprints, which is 0 / 0.
    """
    common_RC = intersections(rows, columns)
    union_RC = (rows.counts_N[:, None] + columns.counts_N).sub_(common_RC)
    similarity_RC = common_RC.div_(union_RC)
    if bool((rows.counts_N == 0).any()) and bool((columns.counts_N == 0).any()):
        similarity_RC.nan_to_num_(nan=both_empty)
    return similarity_RC


def distances(rows: Bits, columns: Bits) -> Tensor:
    """Compute Tanimoto distances in float64 (R, C), bit for bit as RDKit; 1 for two empty ones.

    The exact values matter next to a threshold: 1 - 7/20 must not exceed 0.65.
    """
    common_RC = intersections(rows, columns).double()
    union_RC = (rows.counts_N[:, None].double() + columns.counts_N).sub_(common_RC)
    return 1 - common_RC.div_(union_RC).nan_to_num_(nan=0.0)


def symmetric_tiles(
    packed_NW: Tensor, both_empty: float = 1.0
) -> Iterator[tuple[slice, slice, Tensor]]:
    """Compare all pairs of a set, tile by tile.

    Args:
        packed_NW: Fingerprints.
        both_empty: As in `similarities`.

    Yields:
        The tile's rows, its columns, and their similarities, float32 (R, C). Tiles below the
        diagonal are left out, those on it are whole.
    """
    size = TILE if packed_NW.device.type == "cpu" else TILE * TILES_ON_ACCELERATOR
    starts = range(0, len(packed_NW), size)

    def tile(start: int) -> Bits:
        return unpacked(packed_NW[start : start + size])

    # A small set is unpacked once; of a large one, columns are unpacked for each tile of rows.
    get = cache(tile) if len(starts) <= MOST_UNPACKED_TILES else tile
    for first in starts:
        rows = get(first)
        for second in starts[first // size :]:
            columns = rows if first == second else get(second)
            yield (
                slice(first, first + len(rows.bits_NK)),
                slice(second, second + len(columns.bits_NK)),
                similarities(rows, columns, both_empty),
            )


def _product_dtype(device: torch.device, most: int) -> torch.dtype:
    if device.type == "cpu":
        return torch.int8 if torch.cpu._is_vnni_supported() else torch.float32
    return torch.float16 if most <= LARGEST_FLOAT16_COUNT else torch.float32
