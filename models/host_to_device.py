"""Numbers and tensors of the host on another device, without waiting for that device."""

import torch
from torch import Tensor


def number_on(device: torch.device, value: float) -> Tensor:
    """Return a Python number as a float32 scalar on a device.

    `torch.tensor(value, device=...)` copies it from the host's memory, and waits for the copy; a
    kernel that fills one number takes it as an argument.

    >>> number_on(torch.device("cpu"), 0.5)
    tensor(0.5000)
    """
    return torch.full((), value, dtype=torch.float32, device=device)


def sent_to(device: torch.device, tensor: Tensor) -> Tensor:
    """Return a tensor of the host on a device; the host goes on while a GPU copies it.

    The GPU reads from pinned memory, which torch keeps until the copy is done.

    >>> sent_to(torch.device("cpu"), torch.tensor([1, 2])).tolist()
    [1, 2]
    """
    if device.type != "cuda" or tensor.device.type != "cpu":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
