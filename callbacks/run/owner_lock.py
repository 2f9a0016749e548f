"""One process owns a run's directory: a lock that ends with the process, however it ends."""

import os
import socket
from pathlib import Path

from filelock import FileLock, Timeout

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]  # there is no such module

LOCK_FILE = ".owner.lock"


class DirectoryInUseError(ValueError):
    """Another process works in the directory."""


class OwnerLock:
    """The right to write into a directory, until `release` or the end of this process.

    On POSIX it is a record lock: forked workers do not inherit it, so workers that outlive a killed
    run do not hold it. A storage without locks gives none, and the run goes on.

    Args:
        folder: The directory; it has to exist.

    Raises:
        DirectoryInUseError: if another process has the right; the message names it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_FILE
        self._descriptor: int | None = None
        self._other: FileLock | None = None
        if fcntl is None:
            self._other = FileLock(self.path)
            try:
                self._other.acquire(timeout=0)
            except Timeout:
                raise _in_use(folder, "another process") from None
            return
        while True:
            descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except (BlockingIOError, PermissionError):
                owner = os.pread(descriptor, 200, 0).decode(errors="replace").strip()
                os.close(descriptor)
                raise _in_use(folder, owner or "another process") from None
            except OSError:  # no locks there
                os.close(descriptor)
                return
            if self._is_named(descriptor):
                break
            os.close(descriptor)  # its owner has just given it up and removed the name
        text = f"process {os.getpid()} on {socket.gethostname()}\n".encode()
        try:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, text, 0)
        except OSError:  # a full disk: the lock itself needs no space
            pass
        self._descriptor = descriptor

    def _is_named(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Give the right up, and remove the file of the lock."""
        if self._other is not None:
            self._other.release()
            self._other = None
        if self._descriptor is not None:
            # Whoever opens the file now still finds it locked; then its name is free.
            self.path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def is_in_use(folder: Path) -> bool:
    """Tell whether another process works in a directory."""
    if not (folder / LOCK_FILE).is_file():
        return False
    try:
        OwnerLock(folder).release()
    except DirectoryInUseError:
        return True
    return False


def _in_use(folder: Path, owner: str) -> DirectoryInUseError:
    return DirectoryInUseError(
        f"--run_dir {folder} is in use by {owner}. Wait until that run has ended, or choose "
        "another folder"
    )
