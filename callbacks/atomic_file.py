"""Files and folders that are either complete or absent, whenever the process is killed."""

import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and move it there once it is complete on disk.

    An error leaves the file at ``path`` as it was.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "answer.txt"
    >>> with atomic_file(target) as partial:
    ...     _ = partial.write_text("42")
    >>> target.read_text()
    '42'
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Give an empty folder beside ``path`` to fill, and move it to ``path`` at the end.

    A folder cannot replace a filled one in one step, so the old one is moved aside first. Between
    the two steps there is no folder at ``path``, but never a mixture. An error at any point leaves
    the old folder; after a kill, `recover_folder` brings it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    recover_folder(path)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    for leftover in (partial, *_moved_aside(path)):  # of killed processes
        shutil.rmtree(leftover, ignore_errors=True)
    partial.mkdir()
    try:
        yield partial
        _replace_folder(path, partial)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Bring back the folder that a killed process had moved aside to replace it."""
    if path.exists():
        return
    moved_aside = _moved_aside(path)
    if moved_aside:
        max(moved_aside, key=lambda old: old.stat().st_mtime).rename(path)


def _replace_folder(path: Path, partial: Path) -> None:
    if not path.exists():
        partial.rename(path)
        return
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    path.rename(old)
    try:
        partial.rename(path)
    except BaseException:
        old.rename(path)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _moved_aside(path: Path) -> list[Path]:
    name = re.compile(rf"\.{re.escape(path.name)}\.\d+\.old")
    return [found for found in path.parent.glob(".*.old") if name.fullmatch(found.name)]
