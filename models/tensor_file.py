"""Tensors and a description in one safetensors file, written atomically and checked when read."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from triptych.models.host.atomic_file import atomic_file

# A single metadata entry: safetensors orders several arbitrarily, but equal contents must give
# equal files.
DESCRIPTION = "description"


def save_tensors(path: str | Path, tensors: dict[str, Tensor], description: dict[str, Any]) -> None:
    """Write tensors and description with a checksum of each, as a whole or not at all.

    Args:
        path: The file; its folder is created if missing.
        tensors: Tensors by name; equal names and values give equal files.
        description: Plain types, stored as JSON.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    content = {
        "description": description,
        "sha256": _checksum(tensors),
        "description_sha256": _description_checksum(description),
    }
    text = json.dumps(content, ensure_ascii=False, sort_keys=True)
    with atomic_file(path) as partial:
        save_file(tensors, partial, metadata={DESCRIPTION: text})


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
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): copy it again from the original") from error
    if text is None:
        raise ValueError(f"{path} is another kind of safetensors file: it has no description")
    content = _described(text)
    if content is None or content["sha256"] != _checksum(tensors):
        raise ValueError(
            f"{path} is damaged: its checksum does not match its values. Copy it again from the "
            "original"
        )
    description: dict[str, Any] = content["description"]
    return tensors, description


def _described(text: str) -> dict[str, Any] | None:
    """Read the metadata; None if they are damaged."""
    try:
        content = json.loads(text)
        description, checksum = content["description"], content.get("description_sha256")
        content["sha256"]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None
    # Older files have no checksum of the description.
    is_whole = checksum is None or checksum == _description_checksum(description)
    known = {"description", "sha256", "description_sha256"}
    return content if is_whole and content.keys() <= known else None


def _description_checksum(description: dict[str, Any]) -> str:
    text = json.dumps(description, ensure_ascii=False, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _checksum(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
