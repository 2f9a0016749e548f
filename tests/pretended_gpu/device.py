"""Tensors that say they are on `cuda:0`: each operation runs on the CPU, with CUDA's rules.

Operations refuse tensors of different devices, and the places where the host would wait for the
device are counted. Import it after `guard.load` only.

Not pretended: cuDNN, the LSTM's fused cell, `torch.func`, streams, memory, time. Transfers with
`non_blocking=True` do not wait, as if their host memory were pinned; so judges
`torch.cuda.set_sync_debug_mode`, too.
"""

from collections.abc import Callable, Iterator
from typing import Any, NoReturn
from weakref import WeakValueDictionary

import torch
from torch import Tensor
from torch.serialization import _serialization_tls
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from typing_extensions import override

from tests.pretended_gpu.fused_gru import FUSED
from tests.pretended_gpu.wait_counter import WaitCounter

aten = torch.ops.aten
DEVICE = torch.device("cuda", 0)
CPU = torch.device("cpu")
WAITS = WaitCounter()
#: Generators that were made for the device (cuda.py), by the address of torch's own object.
DEVICE_GENERATORS: WeakValueDictionary[int, Any] = WeakValueDictionary()

# They return what only the device knows: a number, or a tensor of a size that depends on values.
WAITING = {
    aten._local_scalar_dense.default: "number to the host",
    aten.is_nonzero.default: "number to the host",
    aten.equal.default: "equal",
    aten.nonzero.default: "nonzero",
    aten.masked_select.default: "masked_select",
    aten.masked_scatter.default: "masked_scatter",
    aten._unique2.default: "unique",
    aten.unique_dim.default: "unique",
    aten.unique_consecutive.default: "unique_consecutive",
    aten.bincount.default: "bincount",
}
INDEXING = {
    aten.index.Tensor,
    aten._unsafe_index.Tensor,
    aten.index_put_.default,
    aten.index_put.default,
    aten._index_put_impl_.default,
}
COPIES = {aten.copy_.default, aten.copy.default, aten._to_copy.default}
UNWRITTEN = {
    aten.empty.memory_format,
    aten.empty_like.default,
    aten.empty_strided.default,
    aten.new_empty.default,
    aten.new_empty_strided.default,
}
# A tensor of no dimensions on the CPU counts as a number for most operations, but not for these.
NO_NUMBERS = {
    aten.gather.default,
    aten.cat.default,
    aten.stack.default,
    aten.index_select.default,
    aten.scatter.src,
    aten.scatter_add.default,
    aten.embedding.default,
}


class MixedDevicesError(RuntimeError):
    """An operation got tensors or generators of different devices."""


class PretendedTensor(Tensor):
    """A tensor that is said to be on the device, around one on the CPU."""

    _elem: Tensor

    @staticmethod
    def __new__(cls, elem: Tensor) -> "PretendedTensor":
        made = Tensor._make_wrapper_subclass(
            cls,
            elem.size(),
            strides=elem.stride(),
            storage_offset=elem.storage_offset(),
            dtype=elem.dtype,
            layout=elem.layout,
            device=DEVICE,
            requires_grad=False,
        )
        made._elem = elem
        return made

    def __init__(self, elem: Tensor) -> None: ...

    @override
    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PretendedTensor({self._elem})"

    @classmethod
    @override
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["_elem"], None

    @staticmethod
    def __tensor_unflatten__(inner: Any, meta: Any, size: Any, stride: Any) -> "PretendedTensor":
        return PretendedTensor(inner["_elem"])

    @override
    def numpy(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError("can't convert cuda:0 device type tensor to numpy: copy it to the host")

    @override
    def tolist(self) -> Any:
        WAITS.add("tolist")
        return self._elem.tolist()

    @override
    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_lists_as_tensors(index))

    @override
    def __setitem__(self, index: Any, value: Any) -> None:
        super().__setitem__(_lists_as_tensors(index), value)

    @override
    def data_ptr(self) -> int:
        return self._elem.data_ptr()

    @override
    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        if id(self) not in memo:
            made: Tensor = PretendedTensor(self._elem.detach().clone())
            is_parameter = isinstance(self, torch.nn.Parameter)
            memo[id(self)] = (
                torch.nn.Parameter(made, self.requires_grad)
                if is_parameter
                else made.requires_grad_(self.requires_grad)
            )
        found: Tensor = memo[id(self)]
        return found

    @override
    def __reduce_ex__(self, protocol: Any) -> Any:
        return loaded_tensor, (self._elem.detach(), self.requires_grad)


def _lists_as_tensors(index: Any) -> Any:
    """Return an index with tensors for lists, which torch would make where no mode sees them."""
    if isinstance(index, list):
        return torch.tensor(index)
    return tuple(map(_lists_as_tensors, index)) if type(index) is tuple else index


def loaded_tensor(elem: Tensor, requires_grad: bool) -> Tensor:
    """Restore a saved tensor where `torch.load`'s `map_location` wants it."""
    where: Any = _serialization_tls.map_location
    if isinstance(where, dict):
        where = where.get(str(DEVICE))
    elif where is not None and not isinstance(where, str | torch.device):
        found = where(elem.untyped_storage(), str(DEVICE))
        where = None if found is None else found.device
    on_cpu = where is not None and torch.device(where).type == "cpu"
    return (elem if on_cpu else PretendedTensor(elem)).requires_grad_(requires_grad)


torch.serialization.add_safe_globals([loaded_tensor])


class PretendedDevice(TorchDispatchMode):
    """Makes tensors on `cuda` too, while it is entered."""

    @override
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return run(func, args, kwargs or {})


def unwrapped(value: Any) -> Any:
    """Return what a tensor of the device is around."""
    return value._elem if isinstance(value, PretendedTensor) else value


def wrapped(value: Any) -> Any:
    """Put a tensor on the device."""
    is_plain = isinstance(value, Tensor) and not isinstance(value, PretendedTensor)
    return PretendedTensor(value) if is_plain else value


def _leaves(values: Any) -> Iterator[Any]:
    """Yield what lists of arguments hold. pytree, which knows more containers, is slow."""
    for value in values:
        if isinstance(value, list | tuple):
            yield from _leaves(value)
        else:
            yield value


def _mapped(function: Callable[[Any], Any], values: Any) -> Any:
    """Apply a function to all in (nested) lists of arguments or results."""
    if isinstance(values, list | tuple):
        mapped = [_mapped(function, value) for value in values]
        return mapped if isinstance(values, list) else tuple(mapped)
    return function(values)


def run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    """Run one operation; memory that nobody has written to holds nan."""
    made = _run(func, args, kwargs)
    if func in UNWRITTEN and made.is_floating_point():
        unwrapped(made).fill_(torch.nan)
    return made


def _run(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat = [*_leaves(args), *_leaves(kwargs.values())]
    on_device = [one for one in flat if isinstance(one, PretendedTensor)]
    on_host = [
        one for one in flat if isinstance(one, Tensor) and not isinstance(one, PretendedTensor)
    ]
    target = None if kwargs.get("device") is None else torch.device(kwargs["device"])
    if func in COPIES:
        return _copy(func, args, kwargs, target)
    if not on_device:
        if target is None or target.type != "cuda":
            return func(*args, **kwargs)
        _check_generator(func, flat, target)
        plain = {k: v for k, v in kwargs.items() if k != "pin_memory"} | {"device": CPU}
        return _mapped(wrapped, func(*args, **plain))
    if on_host:
        _check_devices(func, args, on_host)
    _check_generator(func, flat, target or DEVICE)
    _count_waits(func, args, kwargs)
    if func is aten._fused_sdp_choice.default:
        return 0  # the plain implementation, in operations that are checked one by one
    plain_args, plain_kwargs = _mapped(unwrapped, args), _unwrapped_options(kwargs)
    if target is not None:
        made = func(*plain_args, **(plain_kwargs | {"device": CPU}))
        return _mapped(wrapped, made) if target.type == "cuda" else made
    made = _mapped(wrapped, FUSED.get(func, func)(*plain_args, **plain_kwargs))
    if func in FUSED:
        return made
    if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
        return made
    return return_and_correct_aliasing(func, args, kwargs, made)


def _unwrapped_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: _mapped(unwrapped, value) for name, value in kwargs.items()}


def _copy(func: Any, args: Any, kwargs: dict[str, Any], target: torch.device | None) -> Any:
    plain_args = _mapped(unwrapped, args)
    if func is aten._to_copy.default:
        source = args[0]
        goes_to = (target or source.device).type
        _count_transfer(source.device.type, goes_to, bool(kwargs.get("non_blocking")))
        dropped = ("device", "pin_memory", "non_blocking")
        made = func(*plain_args, **{k: v for k, v in kwargs.items() if k not in dropped})
        made = made.clone() if made is plain_args[0] else made
        return wrapped(made) if goes_to == "cuda" else made
    to, source = args[:2]
    waits_not = bool(kwargs.get("non_blocking") or (len(args) > 2 and args[2]))
    _count_transfer(source.device.type, to.device.type, waits_not)
    made = func(*plain_args[:2])
    if func is aten.copy_.default:
        return to
    return wrapped(made) if isinstance(to, PretendedTensor) else made


def _count_transfer(source: str, target: str, waits_not: bool) -> None:
    if source != target and not waits_not:
        WAITS.add("copy to the host" if target == "cpu" else "copy to the device")


def _count_waits(func: Any, args: Any, kwargs: dict[str, Any]) -> None:
    if func in WAITING:
        WAITS.add(WAITING[func])
    elif func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None:
        WAITS.add("repeat_interleave")
    elif func in INDEXING:
        indices = [one for one in args[1] if one is not None]
        if any(one.dtype == torch.bool for one in indices):
            WAITS.add("index by a mask")
        if isinstance(args[0], PretendedTensor) and any(
            not isinstance(one, PretendedTensor) for one in indices
        ):
            WAITS.add("copy of indices")


def _check_devices(func: Any, args: Any, on_host: list[Tensor]) -> None:
    if func in INDEXING:
        indices = [one for one in args[1] if one is not None]
        if not isinstance(args[0], PretendedTensor):
            if any(isinstance(one, PretendedTensor) for one in indices):
                _refuse(func, args, "a tensor on the CPU is indexed by one on the device")
            return
        values = args[2] if len(args) > 2 else None
        if isinstance(values, Tensor) and not isinstance(values, PretendedTensor) and values.dim():
            _refuse(func, args, "values on the CPU are put into a tensor on the device")
    elif func in NO_NUMBERS or any(one.dim() > 0 for one in on_host):
        _refuse(func, args, "tensors on cuda:0 and on the CPU")


def _check_generator(func: Any, flat: list[Any], target: torch.device) -> None:
    for one in flat:
        if isinstance(one, torch._C.Generator):
            # torch hands over another object for the same generator.
            device = DEVICE if one._cdata in DEVICE_GENERATORS else CPU
            if device.type != target.type:
                _refuse(func, [], f"a generator of {device} for a tensor on {target}")


def _refuse(func: Any, args: Any, reason: str) -> NoReturn:
    shapes = [(one.device.type, *one.shape) for one in args if isinstance(one, Tensor)]
    raise MixedDevicesError(f"{func}: {reason} {shapes}")


def _mm_into(left: Tensor, right: Tensor, out_dtype: torch.dtype) -> Tensor:
    """Compute CUDA's product with a wider result, which the CPU build lacks."""
    return torch.mm(left.to(out_dtype), right.to(out_dtype))


_CPU_KERNELS = torch.library.Library("aten", "IMPL", "CPU")
_CPU_KERNELS.impl("mm.dtype", _mm_into)
