"""Copies from the host to a device that no one waits for."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a tensor of the host to a device without waiting for the device.

    CUDA copies asynchronously only from page-locked memory.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


def send_indices(arrays: Sequence[NDArray[np.int64]], device: torch.device) -> list[Tensor]:
    """Send integer arrays of any shapes to a device in one copy.

    The tensors can take part in training, wherever they are made.
    """
    flat = np.concatenate([np.empty(0, np.int64), *(array.reshape(-1) for array in arrays)])
    with torch.inference_mode(False):
        pieces = send(torch.from_numpy(flat), device).split([array.size for array in arrays])
        return [piece.view(array.shape) for piece, array in zip(pieces, arrays, strict=True)]


def number_on(device: torch.device, value: float) -> Tensor:
    """Return a Python number as a float32 scalar on a device.

    `torch.tensor(value, device=...)` copies it from the host's memory, and waits for the copy; a
    kernel that fills one number takes it as an argument.

    >>> number_on(torch.device("cpu"), 0.5)
    tensor(0.5000)
    """
    return torch.full((), value, dtype=torch.float32, device=device)
