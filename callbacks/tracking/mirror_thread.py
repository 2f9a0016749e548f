"""A thread that keeps a mirror up to date, without blocking the caller."""

import logging
import threading
import time
from typing import Protocol

from triptych.callbacks.tracking.mlflow_store import MirrorBusyError, cause_of

log = logging.getLogger(__name__)

FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Mirror(Protocol):
    """Something that can be brought up to date, and fails by raising."""

    def update(self) -> None:
        """Bring the mirror up to date."""


class MirrorThread:
    """Updates a mirror in the background after each change.

    Updates start at least `seconds_between` apart. After a failure the next attempt comes after one
    second, and later ones at intervals that double up to a minute. The first failure is said once;
    that another process sends the run is said apart from that a store does not answer.

    Args:
        mirror: What is updated.
        name: Name of the store in messages.
        seconds_between: Shortest time between the starts of two updates.
    """

    def __init__(self, mirror: Mirror, name: str, seconds_between: float = 2.0) -> None:
        self.last_error: str | None = None
        self._mirror = mirror
        self._name = name
        self._seconds_between = seconds_between
        self._pause = FIRST_PAUSE_SECONDS
        self._start_at = 0.0
        self._changed = threading.Condition()  # its lock guards what follows
        self._wanted = 0  # number of the last change
        self._done = 0  # number of the last change that an ended attempt has seen
        self._said: set[bool] = set()  # whether the mirror was busy, or the store away
        self._is_busy = False
        self._answered = False
        self._thread: threading.Thread | None = None

    def wake(self) -> None:
        """Say that something has changed, and return at once."""
        with self._changed:
            self._wanted += 1
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        """Try at once and, if that fails, again until the time is over.

        A store that has never answered is tried once: it was not there to begin with. For another
        process that sends the run it waits.

        Returns:
            Whether the mirror has all that had changed before this call.
        """
        deadline = time.monotonic() + timeout_seconds
        self.wake()
        with self._changed:
            wanted = self._wanted
            self._pause = FIRST_PAUSE_SECONDS
            self._start_at = 0.0
            self._changed.notify_all()
            while (left := deadline - time.monotonic()) > 0:
                waits = self._answered or self._is_busy
                if self._done >= wanted and (self.last_error is None or not waits):
                    break
                self._changed.wait(left)
            return self._done >= wanted and self.last_error is None

    def _run(self) -> None:
        while True:
            with self._changed:
                while True:
                    wait = self._start_at - time.monotonic()
                    is_due = self._wanted > self._done or self.last_error is not None
                    if is_due and wait <= 0:
                        break
                    self._changed.wait(wait if is_due else None)
                seen = self._wanted
                self._start_at = time.monotonic() + self._seconds_between
            error = self._attempt()
            with self._changed:
                self._done = seen
                if error is None:
                    self.last_error = None
                    self._answered = True
                    self._pause = FIRST_PAUSE_SECONDS
                else:
                    self._fail(error)
                self._changed.notify_all()

    def _attempt(self) -> Exception | None:
        try:
            self._mirror.update()
        except Exception as error:  # no error of a store may stop training
            return error
        return None

    def _fail(self, error: Exception) -> None:
        self.last_error = cause_of(error)
        self._is_busy = isinstance(error, MirrorBusyError)
        self._start_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        if self._is_busy in self._said:
            return
        self._said.add(self._is_busy)
        if self._is_busy:
            log.warning(
                "%s to %s. Training continues, and sending is tried again.",
                self.last_error,
                self._name,
            )
        else:
            log.warning(
                "%s does not answer (%s). Training continues; the run's directory keeps "
                "everything, and sending is tried again.",
                *(self._name, self.last_error),
            )
