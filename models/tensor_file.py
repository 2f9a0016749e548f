"""Tensors with a description in one safetensors file that is either whole or not there."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

# One text for everything: safetensors keeps several in an order of its own, and equal contents
# shall give equal files.
DESCRIPTION = "description"


def save_tensors(path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write the file beside its place, sync it to disk, and move it there in one step.

    Args:
        path: The file; its folder is made if need be.
        tensors: What to keep; equal names and values give equal files.
        description: Plain types, kept as JSON.
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
    """Read what `save_tensors` wrote, and check every byte of it.

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
            f"{path} is cut short or damaged ({error}): copy it again from where it was made"
        ) from error
    if text is None:
        raise ValueError(f"{path} is a safetensors file of something else: it has no description")
    content: dict[str, Any] = json.loads(text)
    if content["sha256"] != _checksum(tensors):
        raise ValueError(
            f"{path} is damaged: its values are not those that were written. Copy it again from "
            "where it was made"
        )
    description: dict[str, Any] = content["description"]
    return tensors, description


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
