"""Checksums of a folder's files in ``SHA256SUMS``, as ``sha256sum -c`` reads them too."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

SUMS_FILE = "SHA256SUMS"
#: Files that decide what a model computes. Cards and settings of training may be edited.
CHECKED = (".safetensors", ".json", ".jinja", ".npy", ".txt")
MAY_BE_EDITED = ("generation_config.json",)
_MOST_PARENTS = 2  # agents lie in folders of their own, below the one with the sums


def write_checksums(folder: Path) -> None:
    """Write the checksums of all files in a folder and below."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_FILE)
    lines = [f"{_sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / SUMS_FILE).write_text("".join(lines))


def refresh_checksums(folder: str | Path) -> None:
    """Write the checksums of a folder's files again after a save, where it has some.

    Files beside the folder keep the sums that they have.
    """
    folder = Path(folder).absolute()
    for place in (folder, *folder.parents[:_MOST_PARENTS]):
        sums = place / SUMS_FILE
        if not sums.is_file():
            continue
        old = [line for line in sums.read_text(errors="replace").splitlines() if line]
        kept = [line for line in old if folder not in (place / line.partition("  ")[2]).parents]
        saved = (path for path in folder.rglob("*") if path.is_file() and path.name != SUMS_FILE)
        lines = [f"{_sha256(path)}  {path.relative_to(place).as_posix()}" for path in saved]
        lines = sorted([*kept, *lines], key=lambda line: line.partition("  ")[2])
        sums.write_text("".join(f"{line}\n" for line in lines))
        return


def check_folder(folder: str | Path) -> None:
    """Compare the files of a folder with their checksums, where it has some.

    Only files in the folder itself are read, and of these the ones that decide what a model
    computes. Files without a checksum are accepted: they were added later.

    Raises:
        ValueError: if a file is damaged or missing; the message names it.
    """
    folder = Path(folder).absolute()
    for place in (folder, *folder.parents[:_MOST_PARENTS]):
        if (place / SUMS_FILE).is_file():
            _check(folder, place / SUMS_FILE)
            return


def read_settings(path: Path, **kinds: Any) -> dict[str, Any]:
    """Read a JSON object that has to hold some keys.

    Args:
        path: The file.
        **kinds: Keys that have to be there, with the types of their values.

    Raises:
        ValueError: if the file is no such object; the message names file and key.
    """
    advice = "copy the file again from the original, or export the model anew"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}): {advice}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds no JSON object: {advice}")
    for key, kind in kinds.items():
        if not isinstance(content.get(key), kind):
            state = "has no" if key not in content else "has another kind of value for"
            raise ValueError(f"{path} {state} {key!r}: {advice}")
    return content


@contextmanager
def named_in_errors(path: str | Path) -> Iterator[None]:
    """Name a model's folder in the errors of libraries that read it.

    Raises:
        ValueError: instead of an error of another kind than those of the system and of options.
    """
    try:
        yield
    except (OSError, ImportError, MemoryError):
        raise
    except ValueError as error:
        if type(error) is not ValueError or str(path) in str(error):
            raise
        raise ValueError(f"{error} (in {path})") from error
    except Exception as error:  # whatever the bytes or settings lead to
        if type(error).__name__ == "OutOfMemoryError":  # torch's: this file does without torch
            raise
        text = str(error).partition("\n")[0][:200]
        raise ValueError(
            f"{path} cannot be loaded ({type(error).__name__}: {text}): copy it again from the "
            "original, or export the model anew"
        ) from error


def _check(folder: Path, sums: Path) -> None:
    for line in sums.read_text(errors="replace").splitlines():
        wanted, _, name = line.partition("  ")
        path = sums.parent / name
        if path.parent != folder or name in MAY_BE_EDITED or path.suffix not in CHECKED:
            continue
        if not path.is_file():
            raise ValueError(
                f"{path} is missing, which {sums} lists: copy the folder again from the original"
            )
        stat = path.stat()
        if _sha256_of(path, stat.st_size, stat.st_mtime_ns) != wanted:
            raise ValueError(
                f"{path} is damaged: it differs from its checksum in {sums.name}. Copy it again "
                "from the original; if you have changed it yourself, delete its line there"
            )


@lru_cache(maxsize=256)
def _sha256_of(path: Path, size: int, mtime_ns: int) -> str:
    """Hash a file once as long as it stays the same."""
    return _sha256(path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
