"""Cached folders on disk, each built once and as a whole."""

import glob
import os
import secrets
import shutil
import stat
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from triptych.models.host.atomic_file import sync_folder


def default_cache_dir() -> Path:
    """Return the folder for caches: `TRIPTYCH_CACHE`, else `~/.cache/triptych`.

    Without a usable home (empty, or not writable) the folder is in the system's temporary folder.

    Raises:
        PermissionError: if it would be there, and somebody else has made it.
    """
    if chosen := os.environ.get("TRIPTYCH_CACHE"):
        return Path(chosen)
    home = None if os.environ.get("HOME") == "" else os.path.expanduser("~/.cache")
    if base := os.environ.get("XDG_CACHE_HOME") or home:
        folder = Path(base) / "triptych"
        existing = next(parent for parent in [folder, *folder.parents] if parent.exists())
        if folder.is_absolute() and os.access(existing, os.W_OK):
            return folder
    user = os.getuid() if hasattr(os, "getuid") else os.getlogin()  # Windows has names alone
    return _own_folder(Path(tempfile.gettempdir()) / f"triptych-{user}")


def build_once(folder: Path, build: Callable[[Path], object]) -> Path:
    """Return `folder`; build it first if it does not exist.

    Of several processes one builds the folder and the others wait. An interrupted build leaves no
    folder behind.

    Args:
        folder: The folder; its name should hold a fingerprint of everything `build` depends on.
        build: Writes the contents into an empty folder.
    """
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(folder.name + ".lock")):
        if folder.is_dir():
            return folder
        for leftover in folder.parent.glob(glob.escape(folder.name) + ".*"):
            if leftover.is_dir():  # of a process that was killed: whoever builds holds the lock
                shutil.rmtree(leftover, ignore_errors=True)
        unfinished = folder.with_name(f"{folder.name}.{secrets.token_hex(6)}")
        unfinished.mkdir()  # with the permissions that the umask gives
        try:
            build(unfinished)
            sync_folder(unfinished)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder


def _own_folder(folder: Path) -> Path:
    """Make a folder in a place where everybody writes, and refuse another's.

    Raises:
        PermissionError: if somebody else has made it.
    """
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = folder.lstat()
    is_foreign = hasattr(os, "getuid") and found.st_uid != os.getuid()
    if is_foreign or not stat.S_ISDIR(found.st_mode):
        raise PermissionError(
            f"the cache {folder} belongs to another user: set TRIPTYCH_CACHE to one of your own"
        )
    return folder
