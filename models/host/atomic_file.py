"""Files and folders that are either complete or absent, whenever the process is killed."""

import hashlib
import os
import re
import secrets
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]
_ACTIVE: set[str] = set()  # names that this process is writing to
_SECONDS_OF_OLD_NAMES = 3600  # of names that do not say the host


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """Give a path beside ``path`` to write to, and move it there once it is complete on disk.

    An error leaves the file at ``path`` as it was. What killed processes have left beside it is
    removed. The file has the permissions that the umask gives.

    Raises:
        OSError: if the file cannot be written; the message names ``path``.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "answer.txt"
    >>> with atomic_file(target) as partial:
    ...     _ = partial.write_text("42")
    >>> target.read_text()
    '42'
    """
    with _named_in_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(path)
        with _partial_of(path) as partial:
            try:
                os.close(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
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
    with _named_in_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        recover_folder(path)
        remove_leftovers(path)
        for leftover in _moved_aside(path):  # of killed processes
            shutil.rmtree(leftover, ignore_errors=True)
        with _partial_of(path) as partial:
            partial.mkdir()
            try:
                yield partial
                sync_folder(partial)
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


def remove_leftovers(path: Path) -> None:
    """Remove what killed processes have left of a write to ``path``."""
    name = re.compile(rf"\.{re.escape(path.name)}\.(?:(\w{{8}})-)?(\d+)(?:-\w+)?\.partial")
    for found in path.parent.glob(".*.partial"):
        match = name.fullmatch(found.name)
        if match is None or found.name in _ACTIVE or not _is_left(found, match[1], int(match[2])):
            continue
        if found.is_dir():
            shutil.rmtree(found, ignore_errors=True)
        else:
            found.unlink(missing_ok=True)


def sync_folder(folder: Path) -> None:
    """Bring all files of a folder to disk: a power cut must not leave a whole folder of zeros."""
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place) / name
            is_writable = os.access(path, os.W_OK)
            if is_writable or os.name == "posix":  # Windows syncs what it may write to
                with path.open("rb+" if is_writable else "rb") as file:
                    os.fsync(file.fileno())


@contextmanager
def _partial_of(path: Path) -> Iterator[Path]:
    """Name a file or folder that nobody else can guess."""
    partial = path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{secrets.token_hex(6)}.partial")
    _ACTIVE.add(partial.name)
    try:
        yield partial
    finally:
        _ACTIVE.discard(partial.name)


@contextmanager
def _named_in_errors(path: Path) -> Iterator[None]:
    """Name the file that was to be written, not the one beside it, in errors of the disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or not str(error.filename or ".partial").endswith(".partial"):
            raise
        raise type(error)(error.errno, os.strerror(error.errno), str(path)) from error


def _is_left(found: Path, host: str | None, pid: int) -> bool:
    """Tell whether the process that wrote a file is gone."""
    try:
        if host is None and time.time() - found.stat().st_mtime < _SECONDS_OF_OLD_NAMES:
            return False
        if host not in (None, _HOST):
            return False
        if pid == os.getpid():  # a container may give each run the same id
            return True
        os.kill(pid, 0)
    except (ProcessLookupError, FileNotFoundError):
        return True
    except OSError:
        return False
    return False


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
