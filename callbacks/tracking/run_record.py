"""What a run is called and what it was made from: ``tracking.json`` in its directory."""

import json
import logging
import threading
import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from triptych.callbacks.atomic_file import atomic_file

log = logging.getLogger(__name__)

RECORD_FILE = "tracking.json"
Content = dict[str, Any]  # plain JSON values


def time_ms() -> int:
    """Return the milliseconds since 1970, the unit of MLflow."""
    return int(time.time() * 1000)


class RunRecord:
    """The names, settings and state of a run that its other files do not hold.

    The process that makes the run writes the record; whoever mirrors the run reads it. Keys are
    ``key`` (identifies the run in every store), ``experiment``, ``run_name``, ``start_time_ms``,
    ``end_time_ms``, ``status``, ``steps``, ``params``, ``tags``, ``dataset`` and ``parent``
    (directory of the study that the run belongs to).

    Args:
        run_dir: The run's directory.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self.path = run_dir / RECORD_FILE
        self._lock = threading.Lock()
        self._has_failed = False

    def read(self) -> Content:
        """Return the record, or one made from ``summary.json`` for a run that was not tracked."""
        content = read_json(self.path)
        if content.get("key"):
            return content
        summary = read_json(self.run_dir / "summary.json")
        started = content.get("start_time_ms") or _oldest_ms(self.run_dir)
        return {
            "key": uuid.uuid4().hex,
            "experiment": summary.get("experiment") or "unnamed",
            "run_name": summary.get("run_name") or self.run_dir.name,
            "start_time_ms": started,
            "status": _MLFLOW_STATUS.get(summary.get("status", ""), "FAILED"),
        } | content

    def begin(self, experiment: str, run_name: str, parent: Path | None = None) -> None:
        """Write the record of a run that starts, or that is resumed in place."""
        with self._lock:
            self._write(self._started(experiment, run_name, parent))

    def _started(self, experiment: str, run_name: str, parent: Path | None) -> Content:
        earlier = self.read() if self.path.is_file() else {}
        started: Content = {
            "key": uuid.uuid4().hex,
            "start_time_ms": time_ms(),
            **earlier,
            "experiment": experiment,
            "run_name": run_name,
            "status": "RUNNING",
            "end_time_ms": None,
        }
        if parent is not None:
            started["parent"] = str(parent.resolve())
        return started

    def add(self, name: str, values: Mapping[str, Any]) -> None:
        """Merge values into ``params``, ``tags`` or ``dataset``."""
        with self._lock:
            content = self.read()
            content[name] = {**content.get(name, {}), **values}
            self._write(content)

    def end(self, status: str, steps: int = 0) -> None:
        """Set the final status: ``FINISHED``, ``FAILED`` or ``KILLED``; and the last step."""
        with self._lock:
            ended = {"status": status, "end_time_ms": time_ms(), "steps": steps}
            self._write(self.read() | ended)

    def keep(self) -> Content:
        """Return the record, and write it if the run had none."""
        with self._lock:  # the run's thread may end the record at this moment
            if read_json(self.path).get("key"):
                return self.read()
            content = self.read()
            self._write(content)
            return content

    def _write(self, content: Content) -> None:
        try:
            with atomic_file(self.path) as partial:
                partial.write_text(json.dumps(content, indent=2) + "\n")
        except OSError as error:  # a full disk: tracking may not end a run
            if not self._has_failed:
                log.warning("%s. Trackers will know less about this run.", error)
            self._has_failed = True


_MLFLOW_STATUS = {"finished": "FINISHED", "interrupted": "KILLED"}


def read_json(path: Path) -> Content:
    """Read a JSON object; an absent or damaged file counts as empty, the latter with a warning."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        log.warning("%s is damaged and is not used", path)
        return {}
    return content if isinstance(content, dict) else {}


def _oldest_ms(run_dir: Path) -> int:
    return int(min((p.stat().st_mtime for p in run_dir.iterdir()), default=time.time()) * 1000)
