"""Tensors and a description in one safetensors file, written atomically and checked when read."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# A single metadata entry: safetensors orders several arbitrarily, but equal contents must give
# equal files.
DESCRIPTION = "description"


def save_tensors(path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write to a temporary file in the same folder, sync it to disk, and rename it.

    Args:
        path: The file; its folder is created if missing.
        tensors: Tensors by name; equal names and values give equal files.
        description: Plain types, stored as JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = {"description": description, "sha256": _checksum(tensors)}
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    try:
        save_file(tensors, partial, metadata={DESCRIPTION: text})
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def load_tensors(path: str | Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a file of `save_tensors` and verify its checksum.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is cut short or damaged, or was not written by `save_tensors`.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(DESCRIPTION)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(
            f"{path} is cut short or damaged ({error}): copy it again from the original"
        ) from error
    if text is None:
        raise ValueError(f"{path} is another kind of safetensors file: it has no description")
    content: dict[str, Any] = json.loads(text)
    if content["sha256"] != _checksum(tensors):
        raise ValueError(
            f"{path} is damaged: its checksum does not match its values. Copy it again from the "
            "original"
        )
    description: dict[str, Any] = content["description"]
    return tensors, description


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
