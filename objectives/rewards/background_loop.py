"""One event loop in a thread of its own, for rewards that wait for others.

A notebook has a loop already, and a reward that waits must not hold up the pass over the reference.
"""

import asyncio
import os
import threading
from collections.abc import Coroutine
from concurrent.futures import Future
from typing import Any, TypeVar

T = TypeVar("T")

_lock = threading.Lock()
_running: tuple[int, asyncio.AbstractEventLoop] | None = None


def submit(work: Coroutine[Any, Any, T]) -> "Future[T]":
    """Start a coroutine in the background and return its future."""
    return asyncio.run_coroutine_threadsafe(work, _loop())


def wait_for(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine in the background and return its result; an interrupt cancels it."""
    return collect(submit(work))


def collect(future: "Future[T]") -> T:
    """Return the result of what was submitted; an interrupt cancels it."""
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _loop() -> asyncio.AbstractEventLoop:
    global _running
    with _lock:
        if _running is None or _running[0] != os.getpid():  # a fork leaves the thread behind
            loop = asyncio.new_event_loop()
            threading.Thread(target=loop.run_forever, name="rewards", daemon=True).start()
            _running = os.getpid(), loop
        return _running[1]
