"""A queue of records on disk."""

import json
from collections import deque
from itertools import islice
from pathlib import Path

from callbacks.atomic_file import atomic_file
from callbacks.mlflow_store import Record

RECORDS_AT_ONCE = 256


class Spool:
    """Records in a file of JSON lines: appended at its end, read and dropped from its front.

    Dropped records leave the file when it is empty, or at `compact`.

    Args:
        path: The file; records that an earlier run left in it come first.

    >>> import tempfile
    >>> spool = Spool(Path(tempfile.mkdtemp()) / "spool.jsonl")
    >>> spool.extend(deque([{"kind": "metrics"}, {"kind": "status"}]))
    >>> spool.drop(1)
    >>> len(spool), spool.read()
    (1, [{'kind': 'status'}])
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._front = 0  # bytes from the start of the file to the first record that is left
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
        """The first records that are left, `RECORDS_AT_ONCE` at most."""
        if not self._length:
            return []
        with self.path.open("rb") as file:
            file.seek(self._front)
            return [json.loads(line) for line in islice(file, RECORDS_AT_ONCE)]

    def drop(self, num_records: int) -> None:
        """Take the first records off."""
        self._length -= num_records
        if self._length == 0:
            self.path.unlink()
            self._front = 0
            return
        with self.path.open("rb") as file:
            file.seek(self._front)
            self._front += sum(len(line) for line in islice(file, num_records))

    def compact(self) -> None:
        """Let the file hold nothing but the records that are left."""
        if self._front:
            left = self.path.read_bytes()[self._front :]
            with atomic_file(self.path) as partial:
                partial.write_bytes(left)
            self._front = 0
