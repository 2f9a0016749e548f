"""Ways in which a file may be damaged, or made by somebody else."""

import json
import random
from collections.abc import Callable
from typing import Any

Fault = Callable[[bytes, random.Random], bytes]


def _flipped(count: int, most: int | None = None) -> Fault:
    def fault(data: bytes, chance: random.Random) -> bytes:
        changed = bytearray(data)
        for _ in range(count):
            changed[chance.randrange(min(len(data), most or len(data)))] ^= 1 << chance.randrange(8)
        return bytes(changed)

    return fault


def _zeros(data: bytes, chance: random.Random) -> bytes:
    place = chance.randrange(len(data))
    return data[:place] + b"\0" * min(512, len(data) - place) + data[place + 512 :]


#: Faults of any file.
OF_BYTES: dict[str, Fault] = {
    "empty": lambda data, chance: b"",
    "cut short": lambda data, chance: data[: chance.randrange(1, len(data))],
    "last byte lost": lambda data, chance: data[:-1],
    "a bit flipped": _flipped(1),
    "a bit flipped at the start": _flipped(1, 200),
    "20 bits flipped": _flipped(20),
    "a block of zeros": _zeros,
    "junk after it": lambda data, chance: data + b"junk" * 100,
    "random bytes": lambda data, chance: chance.randbytes(300),
}


def _changed(data: bytes, chance: random.Random) -> bytes:
    content = json.loads(data)
    key = chance.choice(sorted(content))
    values: list[Any] = [None, "abc", -1, 10**15, [], {}, 1.5, True, "../../../etc/passwd"]
    return json.dumps(content | {key: chance.choice(values)}).encode()


def _removed(data: bytes, chance: random.Random) -> bytes:
    content = json.loads(data)
    content.pop(chance.choice(sorted(content)))
    return json.dumps(content).encode()


#: Faults of a file with a JSON object.
OF_JSON: dict[str, Fault] = {
    "not JSON": lambda data, chance: b"{",
    "an empty object": lambda data, chance: b"{}",
    "a list": lambda data, chance: b"[]",
    "null": lambda data, chance: b"null",
    "a number": lambda data, chance: b"3",
    "deep nesting": lambda data, chance: b"[" * 100_000,
    "UTF-16": lambda data, chance: data.decode().encode("utf-16"),
    "cut short": OF_BYTES["cut short"],
    "a value changed": _changed,
    "a key removed": _removed,
    "an unknown key": lambda data, chance: json.dumps(json.loads(data) | {"zzz": 1}).encode(),
}


def _head(change: Callable[[dict[str, Any], str], None]) -> Fault:
    """Change the head of a safetensors file, and leave the values as they are."""

    def fault(data: bytes, chance: random.Random) -> bytes:
        length = int.from_bytes(data[:8], "little")
        head = json.loads(data[8 : 8 + length])
        change(head, chance.choice(sorted(name for name in head if name != "__metadata__")))
        text = json.dumps(head).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return fault


def _reshape(head: dict[str, Any], name: str) -> None:
    head[name]["shape"] = [*head[name]["shape"], 2]


def _flatten(head: dict[str, Any], name: str) -> None:
    size = 1
    for part in head[name]["shape"]:
        size *= part
    head[name]["shape"] = [size]


def _retype(head: dict[str, Any], name: str) -> None:
    head[name]["dtype"] = {"F32": "I32", "I64": "F64"}.get(head[name]["dtype"], "F32")


def _rename(head: dict[str, Any], name: str) -> None:
    head["zzz." + name] = head.pop(name)


#: Faults of a safetensors file, beside those of its bytes.
OF_TENSORS: dict[str, Fault] = {
    **OF_BYTES,
    "another shape": _head(_reshape),
    "one axis": _head(_flatten),
    "another type": _head(_retype),
    "another name": _head(_rename),
    "no metadata": _head(lambda head, _: head.pop("__metadata__", None)),
    "a head longer than the file": lambda data, chance: (2**40).to_bytes(8, "little") + data[8:],
}
