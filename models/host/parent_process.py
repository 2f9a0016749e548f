"""Processes that end when the process which started them has ended."""

import contextlib
import ctypes
import os
import signal
import sys
import threading
import time

#: Holds the id of the process that a child must not outlive.
VARIABLE = "TRIPTYCH_PARENT"
_SECONDS_BETWEEN_LOOKS = 0.5
_SECONDS_TO_END = 60.0
_SET_PARENT_DEATH_SIGNAL = 1  # PR_SET_PDEATHSIG of Linux


def end_with_parent(parent: int, signum: int = signal.SIGKILL) -> None:
    """Send this process a signal as soon as its parent has ended, even by `kill -9`.

    On Linux the kernel does so at once, also to a process that hangs in C code. Elsewhere a thread
    looks twice a second. A process that does not follow another signal is killed a minute later.

    Args:
        parent: Process id of the parent of this process.
        signum: The signal.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None, use_errno=True).prctl(_SET_PARENT_DEATH_SIGNAL, signum, 0, 0, 0)
    arguments = (parent, signum)
    threading.Thread(target=_watch, args=arguments, name="parent", daemon=True).start()


def end_with_named_parent(signum: int = signal.SIGTERM) -> None:
    """Do the same for the parent that the environment names, if it is the parent."""
    named = os.environ.pop(VARIABLE, "")
    if named.isdecimal() and hasattr(os, "getppid"):
        end_with_parent(int(named), signum)


def _watch(parent: int, signum: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    os.kill(os.getpid(), signum)
    time.sleep(_SECONDS_TO_END)
    os.kill(os.getpid(), getattr(signal, "SIGKILL", signal.SIGTERM))
