"""Cached folders on disk, each built once and as a whole."""

import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock


def default_cache_dir() -> Path:
    """Return the folder for caches: `TRIPTYCH_CACHE`, else `~/.cache/triptych`.

    Without a usable home (empty, or not writable) the folder is in the system's temporary folder.
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
    return Path(tempfile.gettempdir()) / f"triptych-{user}"


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
        unfinished = Path(tempfile.mkdtemp(prefix=folder.name + ".", dir=folder.parent))
        try:
            build(unfinished)
            unfinished.rename(folder)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
    return folder
