"""What torch and Lightning ask about CUDA, answered for the pretended device.

The answers stay for the rest of the process, which is there for nothing else (server.py).
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._device import _device_constructors
from torch.utils.data import DataLoader

from tests.pretended_gpu.device import (
    DEVICE,
    DEVICE_GENERATORS,
    WAITS,
    PretendedDevice,
    PretendedTensor,
    unwrapped,
)

NAME = "pretended GPU"
_PROPERTIES = SimpleNamespace(
    name=NAME, major=9, minor=0, total_memory=80 * 2**30, multi_processor_count=132
)


class PretendedGenerator(torch.Generator):
    """The CPU's generator under the name of the device's."""

    _claimed: torch.device

    def __new__(cls, device: Any = "cpu") -> "PretendedGenerator":
        made = super().__new__(cls, "cpu")
        made._claimed = torch.device(device)
        if made._claimed.type == "cuda":
            DEVICE_GENERATORS[made._cdata] = made
        return made

    def __init__(self, device: Any = "cpu") -> None: ...

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return DEVICE if self._claimed.type == "cuda" else self._claimed


class PretendedEvent:
    """A point in time of a device that has always done everything; no one waits for it."""

    def __init__(self, enable_timing: bool = False) -> None:
        self._seconds = 0.0

    def record(self, stream: Any = None) -> None:
        self._seconds = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: "PretendedEvent") -> float:
        return 1000 * (end._seconds - self._seconds)


def pretended_cuda() -> AbstractContextManager[Any]:
    """Answer as with one GPU from now on; tensors are made on it in the returned context."""
    answers: dict[str, Any] = {
        "_lazy_init": lambda: None,
        "Event": PretendedEvent,
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: _PROPERTIES,
        "is_bf16_supported": lambda *_, **__: True,
        "empty_cache": lambda: None,
        "synchronize": _synchronize,
        "memory_allocated": lambda device=None: 0,
        "max_memory_allocated": lambda device=None: 0,
        "reset_peak_memory_stats": lambda device=None: None,
        "manual_seed": lambda seed: None,
        "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.get_rng_state(),
        "get_rng_state_all": lambda: [torch.get_rng_state()],
        "set_rng_state": lambda state, device=None: None,
        "set_rng_state_all": lambda states: None,
    }
    for name, answer in answers.items():
        setattr(torch.cuda, name, answer)
    # `with torch.device(...)` knows the functions that make tensors by their identity; it looks
    # them up once, which has to be before two of them are replaced.
    _device_constructors()
    _replace(torch, "Generator", PretendedGenerator)
    _replace(torch, "tensor", _tensor(torch.tensor))
    _replace(torch, "as_tensor", _as_tensor(torch.as_tensor))
    _replace(Tensor, "pin_memory", lambda self, *_: self)
    _replace(DataLoader, "__init__", _unpinned(DataLoader.__init__))
    _replace(torch.utils, "swap_tensors", _swap)
    _replace(nn.Module, "_apply", _with_swapped_parameters(nn.Module._apply))
    return PretendedDevice()


def _with_swapped_parameters(original: Callable[..., Any]) -> Callable[..., Any]:
    """Keep the identity of parameters that move, as a real GPU does by setting their `data`."""

    def apply(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        before = torch.__future__.get_swap_module_params_on_conversion()
        torch.__future__.set_swap_module_params_on_conversion(True)
        try:
            return original(self, *args, **kwargs)
        finally:
            torch.__future__.set_swap_module_params_on_conversion(before)

    return apply


def _swap(one: Tensor, other: Tensor) -> None:
    """Swap what two names stand for, also where a recurrent network holds weak references."""
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def _replace(owner: Any, name: str, value: Any) -> None:
    setattr(owner, name, value)


def _synchronize(device: Any = None) -> None:
    WAITS.add("synchronize")


def _tensor(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Copy data to the device where that is asked for, which waits."""

    def tensor(data: Any, *args: Any, device: Any = None, **kwargs: Any) -> Tensor:
        kwargs.pop("pin_memory", None)
        made = original(unwrapped(data), *args, **kwargs)
        if device is None or torch.device(device).type != "cuda":
            return made
        WAITS.add("copy to the device")
        return PretendedTensor(made.detach()).requires_grad_(made.requires_grad)

    return tensor


def _as_tensor(original: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def as_tensor(data: Any, dtype: Any = None, device: Any = None) -> Tensor:
        made = data if isinstance(data, Tensor) else original(data, dtype=dtype)
        if dtype is not None:
            made = made.to(dtype)
        return made if device is None else made.to(device)

    return as_tensor


def _unpinned(original: Callable[..., None]) -> Callable[..., None]:
    """Leave memory as it is: pinning is a thread's work that asks for a real device."""

    def init(self: DataLoader[Any], *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs | {"pin_memory": False})

    return init
