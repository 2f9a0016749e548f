"""Asks the operating system to keep a large CPU tensor in huge pages.

Rows of a large table are read at random, and with pages of 4 KiB almost each read also misses the
processor's cache of page addresses. Pages of 2 MiB spare most of these misses.
"""

import ctypes
import functools
import sys
from collections.abc import Callable

from torch import Tensor

_HUGE_PAGE_BYTES = 2 << 20
_MADV_HUGEPAGE = 14  # Linux, asm-generic/mman-common.h


def prefer_huge_pages(tensor: Tensor) -> bool:
    """Advise huge pages for a tensor's memory; its values do not change.

    Best done before anything is written, since pages that are there already are only moved later.
    Advice is no order: where the system has no huge pages, nothing happens.

    Args:
        tensor: On the CPU. Only the whole huge pages within it are advised.

    Returns:
        Whether the advice was taken.
    """
    start = -(-tensor.data_ptr() // _HUGE_PAGE_BYTES) * _HUGE_PAGE_BYTES
    end = tensor.data_ptr() + tensor.numel() * tensor.element_size()
    length = (end - start) // _HUGE_PAGE_BYTES * _HUGE_PAGE_BYTES
    advise = _advise()
    if tensor.device.type != "cpu" or length <= 0 or advise is None:
        return False
    return advise(start, length, _MADV_HUGEPAGE) == 0


@functools.cache
def _advise() -> Callable[[int, int, int], int] | None:
    """`madvise` of the C library, on Linux."""
    if sys.platform != "linux":
        return None
    advise = ctypes.CDLL(None).madvise
    advise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    advise.restype = ctypes.c_int
    return lambda start, length, advice: int(advise(start, length, advice))
