"""The files of a run's directory that a tracker gets, and the rows of its metrics."""

import csv
import json
import math
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from triptych.callbacks.tracking.local_metrics import METRICS_FILE, TIME
from triptych.callbacks.tracking.run_record import RECORD_FILE

STATE_FILE = "tracking_state.json"
SYSTEM_METRICS_FILE = "system_metrics.csv"
METRIC_FILES = (METRICS_FILE, SYSTEM_METRICS_FILE)
#: Large or private to the run: checkpoints, the model (a link to it is kept) and its slot deltas.
SKIPPED_FOLDERS = {"checkpoints", "export", "ledger", "stages", "runs", "bases"}
SUFFIXES = {".csv", ".html", ".json", ".jsonl", ".md", ".png", ".smi", ".svg", ".txt", ".yaml"}
LARGEST_BYTES = 64 * 2**20

Row = tuple[int, int | None, dict[str, float]]  # step, milliseconds since 1970, values


def artifact_files(run_dir: Path) -> Iterator[tuple[str, list[int]]]:
    """Yield the path of each file that a tracker gets, with its size and modification time."""
    for place, folders, names in os.walk(run_dir):
        folders[:] = sorted(
            name for name in folders if name not in SKIPPED_FOLDERS and name[0] != "."
        )
        for name in sorted(names):
            path = Path(place) / name
            if path.suffix not in SUFFIXES or name[0] == "." or name in (RECORD_FILE, STATE_FILE):
                continue
            try:
                stat = path.stat()
            except FileNotFoundError:  # replaced at this moment
                continue
            if path.is_file() and stat.st_size <= LARGEST_BYTES:
                relative = path.relative_to(run_dir).as_posix()
                yield relative, [stat.st_size, stat.st_mtime_ns]


def table_of(path: Path) -> dict[str, list[Any]] | None:
    """Return a list of rows in a JSON file as MLflow's table, None for any other file.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "samples.json"
    >>> _ = path.write_text('[{"question": "1+1?", "answer": 2}, {"question": "?"}]')
    >>> table_of(path)
    {'columns': ['question', 'answer'], 'data': [['1+1?', 2], ['?', None]]}
    """
    if path.suffix != ".json":
        return None
    try:
        rows = json.loads(path.read_text())
    except ValueError:
        return None
    if not isinstance(rows, list) or not rows or not all(isinstance(row, dict) for row in rows):
        return None
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return {"columns": columns, "data": [[row.get(name) for name in columns] for row in rows]}


class MetricRows:
    """The complete rows of a growing CSV file; a last line without its end is not read yet.

    The file is read on from the first row that is not sent, and anew once it has been replaced.

    Args:
        path: The file, with columns ``step``, ``time`` and one for each metric.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._identity: tuple[int, bytes] | None = None
        self._offset = self._num_passed = 0  # of the first row that was not sent at the last call

    def after(self, num_sent: int, most: int) -> tuple[int, list[Row | None]]:
        """Return the rows after the first ``num_sent``; None in place of a row without a step.

        Args:
            num_sent: Number of rows that are sent.
            most: Largest number of rows returned.

        Returns:
            The number of rows before the returned ones, and these rows. The former is 0 for a file
            with fewer than ``num_sent`` rows, which must have been replaced.
        """
        first, header, lines = self._lines(num_sent)
        names = header.decode().strip().split(",")
        return first, [_row(names, line) for line in islice(lines, most)]

    def count_after(self, num_sent: int) -> int:
        """Return the number of rows that are not sent."""
        return sum(1 for _ in self._lines(num_sent)[2])

    def _lines(self, num_sent: int) -> tuple[int, bytes, Iterator[bytes]]:
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return 0, b"", iter(())
        with file:
            header = file.readline()
            identity = (os.fstat(file.fileno()).st_ino, header)
            if identity != self._identity or self._num_passed > num_sent:
                self._identity, self._offset, self._num_passed = identity, len(header), 0
            file.seek(self._offset)
            while self._num_passed < num_sent:
                line = file.readline()
                if not line.endswith(b"\n"):
                    self._identity = None
                    return self._lines(0)
                self._num_passed += 1
                self._offset += len(line)
            rest = file.read()
        complete = rest[: rest.rfind(b"\n") + 1]
        return num_sent, header, iter(complete.splitlines())


def _row(names: list[str], line: bytes) -> Row | None:
    cells = next(csv.reader([line.decode(errors="replace")]), [])
    values = {name: _number(cell) for name, cell in zip(names, cells, strict=False)}
    step, seconds = values.pop("step", None), values.pop(TIME, None)
    if step is None or not math.isfinite(step) or len(cells) != len(names):
        return None
    kept = {name: value for name, value in values.items() if value is not None}
    return int(step), None if seconds is None else int(seconds * 1000), kept


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:
        return None
