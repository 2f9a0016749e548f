"""A thread that sends records and keeps unsent ones on disk."""

import json
import logging
import re
import threading
import time
from collections import deque
from itertools import islice
from pathlib import Path
from typing import Protocol

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_store import Record, RejectedRecordError

log = logging.getLogger(__name__)

SPOOL_FILE = "tracking_spool.jsonl"
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 60.0


class Store(Protocol):
    """A destination of records."""

    def send(self, records: list[Record]) -> int:
        """Send at least the first record, and return the number of records sent."""


class TrackingSender:
    """Sends records to a store in order, without blocking the caller.

    A record goes through a queue to a thread. If the store fails, records are appended to a file in
    the run's directory. The thread then sends that file from its front, first after one second and
    later at growing intervals. The file is deleted once all of it was sent.

    Args:
        store: Destination of the records.
        folder: Folder of the spool, the run's directory.
        name: Name of the store in messages.
    """

    def __init__(self, store: Store, folder: Path, name: str = "the tracking store") -> None:
        self.num_rejected = 0
        self.last_error: str | None = None
        self._store = store
        self._name = name
        self._spool = Spool(folder / SPOOL_FILE)
        self._queue: deque[Record] = deque()
        self._pause = FIRST_PAUSE_SECONDS
        self._retry_at = 0.0
        self._closing = False
        self._abandoned = False
        self._changed = threading.Condition()  # its lock guards everything above
        self._thread: threading.Thread | None = None

    @property
    def num_unsent(self) -> int:
        """Number of records that wait in memory or on disk."""
        with self._changed:
            return len(self._queue) + len(self._spool)

    def put(self, record: Record) -> None:
        """Take a record, and return at once."""
        with self._changed:
            self._queue.append(record)
            if self._thread is None or not self._thread.is_alive():
                self._closing = self._abandoned = False
                self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
                self._thread.start()
            self._changed.notify()

    def close(self, timeout_seconds: float) -> None:
        """Send the rest for a limited time; unsent records end in the spool."""
        thread = self._thread
        if thread is None:
            return
        with self._changed:
            self._closing = True
            self._retry_at = 0.0
            self._changed.notify()
        thread.join(timeout_seconds)
        with self._changed:
            self._abandoned = thread.is_alive()  # stuck in a request: it must not continue later
            self._spool.extend(self._queue)
            self._spool.compact()

    def drain(self) -> int:
        """Send the spool from this thread, and return the number of records left."""
        while self._spool and self._send(self._spool.read()):
            pass
        self._spool.compact()
        return len(self._spool)

    def _run(self) -> None:
        while batch := self._next_batch():
            sent = self._send(batch)
            if self._abandoned or (self._closing and not sent):
                return

    def _next_batch(self) -> list[Record]:
        """Wait for records and for the next attempt; return none once all are sent."""
        with self._changed:
            while True:
                wait = self._retry_at - time.monotonic()
                if wait <= 0 and (self._spool or self._queue):
                    # Records on disk are older than those in memory.
                    return self._spool.read() or list(islice(self._queue, RECORDS_AT_ONCE))
                if self._closing and wait <= 0:
                    return []
                if len(self._queue) >= RECORDS_AT_ONCE:
                    self._spool.extend(self._queue)
                self._changed.wait(timeout=wait if wait > 0 else None)

    def _send(self, batch: list[Record]) -> bool:
        """Send from the front of the batch; on failure, spool everything and wait."""
        try:
            num_done = self._store.send(batch)
        except RejectedRecordError as error:
            num_done = 1
            self.num_rejected += 1
            self.last_error = str(error)
        except Exception as error:  # no error of a store may stop training
            with self._changed:
                self._fail(error)
            return False
        with self._changed:
            if self._abandoned:
                return False
            self._pause = FIRST_PAUSE_SECONDS
            if self._spool:
                self._spool.drop(num_done)
            else:
                for _ in range(num_done):
                    self._queue.popleft()
        return True

    def _fail(self, error: Exception) -> None:
        cause = _cause(error)
        if self.last_error is None:
            log.warning(
                "%s does not answer (%s). Training continues; the records wait in %s and are sent "
                "again.",
                *(self._name, cause, self._spool.path),
            )
        self.last_error = cause
        self._retry_at = time.monotonic() + self._pause
        self._pause = min(2 * self._pause, LONGEST_PAUSE_SECONDS)
        if not self._abandoned:
            self._spool.extend(self._queue)


def _cause(error: Exception) -> str:
    """Return the innermost of the messages that HTTP clients wrap around each other.

    >>> _cause(OSError('Max retries (Caused by NewConnectionError("host: [Errno 111] refused"))'))
    '[Errno 111] refused'
    """
    causes = re.findall(r"""\w+Error\((["'])(.*?)\1\)""", str(error))
    return causes[-1][1].rpartition(": ")[2] if causes else f"{type(error).__name__}: {error}"


RECORDS_AT_ONCE = 256


class Spool:
    """A file of JSON lines: records are appended at its end and dropped from its front.

    Dropped records leave the file when it is empty, or at `compact`.

    Args:
        path: The file; records of an earlier run in it come first.

    >>> import tempfile
    >>> spool = Spool(Path(tempfile.mkdtemp()) / "spool.jsonl")
    >>> spool.extend(deque([{"kind": "metrics"}, {"kind": "status"}]))
    >>> spool.drop(1)
    >>> len(spool), spool.read()
    (1, [{'kind': 'status'}])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._front = 0  # byte offset of the first record that is left
        self._length = len(path.read_bytes().splitlines()) if path.is_file() else 0

    def __len__(self) -> int:
        return self._length

    def extend(self, records: deque[Record]) -> None:
        """Move all records to the end of the file."""
        if not records:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as file:
            file.writelines(json.dumps(record) + "\n" for record in records)
        self._length += len(records)
        records.clear()

    def read(self) -> list[Record]:
        """Return the first records that are left, at most `RECORDS_AT_ONCE`."""
        if not self._length:
            return []
        with self.path.open("rb") as file:
            file.seek(self._front)
            return [json.loads(line) for line in islice(file, RECORDS_AT_ONCE)]

    def drop(self, num_records: int) -> None:
        """Drop the first records."""
        self._length -= num_records
        if self._length == 0:
            self.path.unlink()
            self._front = 0
            return
        with self.path.open("rb") as file:
            file.seek(self._front)
            self._front += sum(len(line) for line in islice(file, num_records))

    def compact(self) -> None:
        """Rewrite the file with the records that are left."""
        if self._front:
            left = self.path.read_bytes()[self._front :]
            with atomic_file(self.path) as partial:
                partial.write_bytes(left)
            self._front = 0
