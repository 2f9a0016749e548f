"""An MLflow logger that never stops or slows a run.

``python -m triptych.callbacks.tracking.mlflow_tracking RUN_DIR --tracking_uri URI`` sends the
records that a run could not send.
"""

import argparse
import importlib.util
import json
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from typing_extensions import override

from triptych.callbacks.tracking.mlflow_store import MLflowStore, Record, metrics_record, time_ms
from triptych.callbacks.tracking.tracking_sender import TrackingSender

if TYPE_CHECKING:
    from matplotlib.figure import Figure

RUN_FILE = "tracking.json"
LONGEST_PARAM = 250  # characters; MLflow truncates longer values


class MLflowTracking(Logger):
    """Logs to any MLflow store, from a separate thread.

    An unreachable store costs the run nothing. Unsent records wait in ``tracking_spool.jsonl`` in
    the run's directory. They are tried again during the run and, for a limited time, at its end. A
    resumed run continues the same MLflow run.

    Args:
        uri: ``sqlite:///mlflow.db``, the URI of any MLflow server, or null for no tracking.
        flush_seconds: Longest time that the end of the run waits for the store.
        tags: Tags of the run, beside ``code_version`` and ``data_fingerprint``.
        experiment: MLflow experiment of the run.
        run_name: Name of the run.
        run_dir: The run's directory.

    Raises:
        ModuleNotFoundError: if mlflow is not installed.
        ValueError: if the URI is of a kind that MLflow no longer writes to.
    """

    GIVEN_BY_RUN: ClassVar = {"experiment", "run_name", "run_dir"}

    def __init__(
        self,
        uri: str | None = "sqlite:///mlflow.db",
        flush_seconds: float = 30.0,
        tags: dict[str, str] | None = None,
        *,
        experiment: str,
        run_name: str,
        run_dir: str | Path,
    ) -> None:
        super().__init__()
        if uri is None:
            raise ValueError("MLflowTracking needs a tracking URI, such as sqlite:///mlflow.db")
        if importlib.util.find_spec("mlflow") is None:
            raise ModuleNotFoundError(
                "mlflow is not installed. Install it with `pip install mlflow`, or run without it: "
                "--tracking.uri null keeps the metrics in metrics.csv only."
            )
        if uri.startswith("file:") or ("://" not in uri and uri != "databricks"):
            raise ValueError(
                f"--tracking.uri {uri}: MLflow no longer writes to plain folders. "
                "Use sqlite:///path/to/mlflow.db or the URI of a server."
            )
        self._uri = _absolute(uri)
        self._flush_seconds = flush_seconds
        self._tags = tags or {}
        self._run_dir = Path(run_dir)
        self._run: Record = {
            "uri": self._uri,
            "experiment": experiment,
            "run_name": run_name,
            "run_id": None,
            "start_time_ms": time_ms(),
        }
        self._sender: TrackingSender | None = None

    @property
    @override
    def name(self) -> str:
        return str(self._run["experiment"])

    @property
    @override
    def version(self) -> str:
        return str(self._run["run_name"])

    @override
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        values = {name: float(value) for name, value in metrics.items()}
        self._put(metrics_record(values, step or 0))

    @override
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        """Log short values as parameters; ``config.yaml`` holds all of them."""
        flat = _flatten_dict(_convert_params(params), delimiter="/")
        short = {k: v for k, v in flat.items() if len(str(v)) <= LONGEST_PARAM and k[0] != "_"}
        for start in range(0, len(short), 100):  # the limit of an MLflow server
            self._put({"kind": "params", "values": dict(list(short.items())[start : start + 100])})

    def log_tags(self, tags: dict[str, str]) -> None:
        """Set tags of the run."""
        self._put({"kind": "tags", "values": tags})

    def log_text(self, text: str, name: str) -> None:
        """Log a text file as the artifact ``name``."""
        self._put({"kind": "text", "text": text, "name": name})

    def log_table(self, rows: list[dict[str, Any]], name: str) -> None:
        """Log rows of plain values as the table ``name``, which ends with ``.json``."""
        self._put({"kind": "table", "rows": rows, "name": name})

    def log_file(self, path: str | Path, folder: str = "") -> None:
        """Log a file into a folder of the run's artifacts; the file must stay in place."""
        self._put({"kind": "file", "path": str(Path(path).resolve()), "folder": folder})

    @rank_zero_only
    def log_figure(self, figure: "Figure", name: str) -> None:
        """Save a figure in the run's directory, and log it as the artifact ``name``."""
        path = self._run_dir / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        self.log_file(path, Path(name).parent.as_posix().removeprefix("."))

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Set the status of the run, send all records, and report those that could not be sent."""
        if self._sender is None:
            return
        interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt | SIGTERMException)
        final = "FINISHED" if status == "success" else "KILLED" if interrupted else "FAILED"
        self._put({"kind": "status", "status": final, "time_ms": time_ms()})
        self._sender.close(self._flush_seconds)
        if message := self._unsent_message(self._sender):
            rank_zero_info(message)

    def status(self) -> dict[str, Any]:
        """Return the entry of tracking in ``summary.json``."""
        sender = self._sender
        return {
            **{key: self._run[key] for key in ("uri", "experiment", "run_name", "run_id")},
            "num_unsent": sender.num_unsent if sender else 0,
            "num_rejected": sender.num_rejected if sender else 0,
        }

    @rank_zero_only
    def _put(self, record: Record) -> None:
        if self._sender is None:
            self._sender = self._start()
        self._sender.put(record)

    def _start(self) -> TrackingSender:
        run_file = self._run_dir / RUN_FILE
        if run_file.is_file():  # the run is resumed in place
            earlier = json.loads(run_file.read_text())
            self._run |= earlier if earlier["uri"] == self._uri else {}
        store = MLflowStore(self._uri, self._run, run_file)
        store.remember_run()
        sender = TrackingSender(store, self._run_dir, f"MLflow at {self._uri}")
        sender.put({"kind": "status", "status": "RUNNING", "time_ms": time_ms()})
        if self._tags:
            sender.put({"kind": "tags", "values": self._tags})
        return sender

    def _unsent_message(self, sender: TrackingSender) -> str:
        lines = []
        if sender.num_unsent:
            lines.append(
                f"MLflow at {self._uri} did not take {sender.num_unsent} records of this run "
                f"({sender.last_error}). They are kept; send them later with\n"
                f"  python -m triptych.callbacks.tracking.mlflow_tracking {self._run_dir} "
                f"--tracking_uri {self._uri}"
            )
        if sender.num_rejected:
            lines.append(
                f"MLflow at {self._uri} refused {sender.num_rejected} records of this run for "
                f"good; the last error was: {sender.last_error}"
            )
        return "\n".join(lines)


def _absolute(uri: str) -> str:
    """Make the path of a database absolute: MLflow keeps it open when the folder changes."""
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}{slashes}{Path(path).resolve()}" if scheme == "sqlite" else uri


def resend(run_dir: Path, uri: str) -> int:
    """Send the records in a run's spool, and return the number of those left."""
    uri = _absolute(uri)
    run_file = run_dir / RUN_FILE
    run = json.loads(run_file.read_text())
    if run["uri"] != uri:  # another store knows nothing of this run yet
        run |= {"uri": uri, "run_id": None}
    sender = TrackingSender(MLflowStore(uri, run, run_file), run_dir)
    return sender.drain()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--tracking_uri", required=True)
    options = parser.parse_args()
    num_left = resend(options.run_dir, options.tracking_uri)
    sys.exit(f"{num_left} records are left in {options.run_dir}" if num_left else 0)
