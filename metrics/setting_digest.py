"""Digests of settings: equal for equal values, in any process, without an object's address.

Python's `hash` differs between processes, and pickles differ for equal values. A digest here is
made of a value's parts instead: numbers and texts by value, sequences by their elements, tensors by
their bytes, functions by name and code, other objects by class and pickled state.
"""

import functools
import types
from collections.abc import Mapping, Sequence, Set
from hashlib import blake2b
from typing import Any

import numpy as np
import torch
from torch import Tensor

DIGEST_BYTES = 16


def setting_digest(value: Any) -> bytes:
    """Return the digest of a value, 16 bytes.

    Lists and tuples are equal, as are 1 and 1.0, since a YAML file cannot tell them apart. What
    cannot be pickled, such as a generator, is equal to itself alone.

    >>> setting_digest([1, "a"]) == setting_digest((1.0, "a")) != setting_digest(["a", 1])
    True
    """
    return _digest(value, ())


def _digest(value: Any, parents: tuple[int, ...]) -> bytes:
    if id(value) in parents:
        return _of("cycle", str(len(parents) - parents.index(id(value))))
    inside = (*parents, id(value))
    if value is None or isinstance(value, bool | str | bytes | complex):
        return _of(type(value).__name__, repr(value))
    if isinstance(value, int | float | np.number):
        return _number(value)
    if isinstance(value, Tensor):
        octets = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        return _of("tensor", str(value.dtype), str(tuple(value.shape)), octets)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return _of("array", str(value.dtype), str(value.shape), value.tobytes())
    if isinstance(value, Sequence):
        if all(type(item) is str for item in value):  # a reference set may hold a million
            encoded = [item.encode("utf-8", "surrogatepass") for item in value]
            lengths = np.array([len(item) for item in encoded], dtype=np.int64).tobytes()
            return _of("texts" if encoded else "sequence", lengths, b"".join(encoded))
        return _of("sequence", *(_digest(item, inside) for item in value))
    if isinstance(value, Mapping):
        pairs = [_digest(key, inside) + _digest(item, inside) for key, item in value.items()]
        return _of("mapping", *sorted(pairs))
    if isinstance(value, Set):
        return _of("set", *sorted(_digest(item, inside) for item in value))
    if isinstance(value, type | torch.dtype | torch.device | types.BuiltinFunctionType):
        return _of("name", getattr(value, "__module__", None) or "", _name(value))
    if isinstance(value, types.FunctionType):
        code, cells = value.__code__, value.__closure__ or ()
        bound = [value.__defaults__, value.__kwdefaults__, [_content(cell) for cell in cells]]
        return _of("function", value.__module__, _name(value), _code(code), _digest(bound, inside))
    if isinstance(value, types.MethodType):
        return _of("method", _digest(value.__func__, inside), _digest(value.__self__, inside))
    if isinstance(value, functools.partial):
        return _of("partial", _digest([value.func, value.args, value.keywords], inside))
    return _object(value, inside)


def _object(value: Any, inside: tuple[int, ...]) -> bytes:
    """Digest an object by the parts that pickle would write."""
    try:
        reduced = value.__reduce_ex__(2)
    except Exception:  # a type may refuse with any error
        return _of("only itself", _name(type(value)), str(id(value)))
    if isinstance(reduced, str):  # a global
        return _of("name", type(value).__module__, _name(type(value)), reduced)
    parts = [*reduced[:3], *(list(items or ()) for items in reduced[3:5])]
    return _of("object", *(_digest(part, inside) for part in parts))


def _number(value: Any) -> bytes:
    number = value.item() if isinstance(value, np.number) else value
    if isinstance(number, float) and number.is_integer():
        number = int(number)
    return _of("number", repr(number))


def _code(code: types.CodeType) -> bytes:
    constants = [
        _code(const) if isinstance(const, types.CodeType) else repr(const).encode()
        for const in code.co_consts
    ]
    return _of("code", code.co_code, " ".join(code.co_names), *constants)


def _content(cell: Any) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not assigned yet
        return None


def _name(value: Any) -> str:
    return getattr(value, "__qualname__", None) or str(value)


def _of(kind: str, *parts: str | bytes) -> bytes:
    """Hash parts with their lengths, so that no two lists of parts run together."""
    digest = blake2b(kind.encode(), digest_size=DIGEST_BYTES)
    for part in parts:
        octets = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        digest.update(b"|%d|" % len(octets) + octets)
    return digest.digest()
