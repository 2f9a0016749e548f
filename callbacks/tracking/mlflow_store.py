"""Records of a run, and their transfer into an MLflow store."""

import errno
import importlib
import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triptych.callbacks.atomic_file import atomic_file

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

Record = dict[str, Any]  # plain JSON values, with the key "kind"

METRICS_PER_REQUEST = 1000  # the limit of an MLflow server

# An unreachable server must not block anything: one short attempt, then the sender tries again.
# Variables that the user has set stay.
SHORT_REQUESTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
QUIET = {"MLFLOW_LOGGING_LEVEL": "WARNING"}  # MLflow would report every table it creates


class RejectedRecordError(Exception):
    """A reachable store has refused this record for good."""


class MLflowStore:
    """One run in an MLflow store, created with the first record that is sent.

    Args:
        uri: Tracking URI: ``sqlite:///mlflow.db``, ``http://host:5000``, ...
        run: Identity of the run: ``experiment``, ``run_name``, ``start_time_ms`` and, once it
            exists in the store, ``run_id``.
        run_file: File that keeps the identity, so that the run can be resumed.
    """

    def __init__(self, uri: str, run: Record, run_file: Path) -> None:
        for name, value in (SHORT_REQUESTS | QUIET).items():
            os.environ.setdefault(name, value)
        # Not in the thread of the sender: two threads must not import the same modules.
        importlib.import_module("mlflow.tracking")
        self.uri = uri
        self.run = run
        self._run_file = run_file
        self._client: MlflowClient | None = None

    def send(self, records: Sequence[Record]) -> int:
        """Send the first record and those after it that fit into the same request.

        Returns:
            Number of records sent, at least one.

        Raises:
            RejectedRecordError: if the store refused the first record for good.
            Exception: if the store cannot be reached or fails; sending may succeed later.
        """
        from mlflow.exceptions import MlflowException

        client = self._connected()
        first, count = records[0], 1
        if first["kind"] == "metrics":
            count = _num_in_one_request(records)
        try:
            if first["kind"] == "metrics":
                metrics = [m for record in records[:count] for m in _metrics(record)]
                client.log_batch(self.run["run_id"], metrics=metrics)
            else:
                getattr(self, f"_send_{first['kind']}")(client, first)
        except MlflowException as error:
            status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]
            if status in (400, 404, 409):
                raise RejectedRecordError(str(error)) from error
            raise
        except FileNotFoundError as error:  # the file was deleted after it was logged
            raise RejectedRecordError(f"{error.filename} is gone") from error
        except OSError:
            raise
        except Exception as error:  # the record is at fault, not the store
            raise RejectedRecordError(f"{type(error).__name__}: {error}") from error
        return count

    def remember_run(self) -> None:
        """Write the identity of the run to its file."""
        with atomic_file(self._run_file) as partial:
            partial.write_text(json.dumps(self.run, indent=2) + "\n")

    def _connected(self) -> "MlflowClient":
        from mlflow.tracking import MlflowClient

        if self._client is None:
            self._client = MlflowClient(tracking_uri=self.uri)
        if self.run.get("run_id") is None:
            self.run["run_id"] = self._create_run(self._client)
            self.remember_run()
        return self._client

    def _create_run(self, client: "MlflowClient") -> str:
        from mlflow.exceptions import MlflowException

        name = self.run["experiment"]
        experiment = client.get_experiment_by_name(name)
        try:
            experiment_id = (
                experiment.experiment_id if experiment else client.create_experiment(name)
            )
        except MlflowException:  # another run has just created it
            experiment = client.get_experiment_by_name(name)
            if experiment is None:
                raise
            experiment_id = experiment.experiment_id
        run = client.create_run(
            experiment_id, start_time=self.run["start_time_ms"], run_name=self.run["run_name"]
        )
        run_id: str = run.info.run_id
        return run_id

    def _send_params(self, client: "MlflowClient", record: Record) -> None:
        from mlflow.entities import Param

        params = [Param(name, str(value)) for name, value in record["values"].items()]
        client.log_batch(self.run["run_id"], params=params)

    def _send_tags(self, client: "MlflowClient", record: Record) -> None:
        from mlflow.entities import RunTag

        tags = [RunTag(name, str(value)) for name, value in record["values"].items()]
        client.log_batch(self.run["run_id"], tags=tags)

    def _send_text(self, client: "MlflowClient", record: Record) -> None:
        client.log_text(self.run["run_id"], record["text"], record["name"])

    def _send_table(self, client: "MlflowClient", record: Record) -> None:
        columns = list(dict.fromkeys(name for row in record["rows"] for name in row))
        table = {name: [row.get(name) for row in record["rows"]] for name in columns}
        client.log_table(self.run["run_id"], table, record["name"])

    def _send_file(self, client: "MlflowClient", record: Record) -> None:
        path = Path(record["path"])
        if not path.exists():
            raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
        client.log_artifact(self.run["run_id"], str(path), record["folder"] or None)

    def _send_status(self, client: "MlflowClient", record: Record) -> None:
        if record["status"] == "RUNNING":
            client.update_run(self.run["run_id"], status="RUNNING")
        else:
            client.set_terminated(self.run["run_id"], record["status"], record["time_ms"])


def metrics_record(values: dict[str, float], step: int) -> Record:
    """Make the record of some metrics at a step, with the present time."""
    return {"kind": "metrics", "values": values, "step": step, "time_ms": time_ms()}


def time_ms() -> int:
    """Return the milliseconds since 1970, the unit of MLflow."""
    return int(time.time() * 1000)


def _metrics(record: Record) -> "list[Metric]":
    from mlflow.entities import Metric

    return [Metric(k, v, record["time_ms"], record["step"]) for k, v in record["values"].items()]


def _num_in_one_request(records: Sequence[Record]) -> int:
    """Count the records at the front that are metrics and fit into one request."""
    num_metrics = 0
    for count, record in enumerate(records):
        num_metrics += len(record.get("values", ())) if record["kind"] == "metrics" else 0
        if record["kind"] != "metrics" or (count > 0 and num_metrics > METRICS_PER_REQUEST):
            return count
    return len(records)
