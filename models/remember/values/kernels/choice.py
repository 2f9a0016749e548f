"""Whether the Triton kernels or torch's own operations run."""

import os
from functools import cache
from importlib.util import find_spec

import torch
from torch import Tensor

KERNELS_VARIABLE = "TRIPTYCH_KERNELS"
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def use_kernels(*tensors: Tensor) -> bool:
    """Tell whether the kernels run for these tensors.

    They run on a GPU of NVIDIA or AMD, in float32, bfloat16 and float16, where triton is installed.
    The environment variable `TRIPTYCH_KERNELS=off` selects torch's operations everywhere.

    Raises:
        ValueError: if the variable is neither `auto` nor `off`.
    """
    return all(t.is_cuda and t.dtype in DTYPES for t in tensors) and _available()


def _available() -> bool:
    wanted = os.environ.get(KERNELS_VARIABLE, "auto")
    if wanted not in ("auto", "off"):
        raise ValueError(f"{KERNELS_VARIABLE} is {wanted!r}: set it to auto or off, or unset it")
    return wanted == "auto" and _installed()


@cache
def _installed() -> bool:
    has_device = torch.version.cuda is not None or torch.version.hip is not None
    return has_device and find_spec("triton") is not None
