"""A run in an MLflow store, brought up to date with the run's directory.

The directory is complete by itself. Sending is idempotent: rows of metrics carry their own times,
files replace those of the same name, and the run is found again by its key. So an outage, a kill,
a resumed run, or two processes that mirror the same run all end in the same MLflow run.
"""

import json
import logging
import tempfile
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_store import (
    MirrorBusyError,
    connect,
    is_gone,
    is_refusal,
    valid_name,
)
from triptych.callbacks.tracking.model_entry import describe, export_fingerprint, send_model
from triptych.callbacks.tracking.run_files import (
    METRIC_FILES,
    STATE_FILE,
    MetricRows,
    Row,
    artifact_files,
    table_of,
)
from triptych.callbacks.tracking.run_record import Content, RunRecord, read_json
from triptych.models.host.secrets import without_secrets

if TYPE_CHECKING:
    from mlflow.entities import Metric
    from mlflow.tracking import MlflowClient

log = logging.getLogger(__name__)

KEY_TAG = "triptych.key"
TABLES_TAG = "mlflow.loggedArtifacts"  # MLflow's pages look here for tables
NOTE_TAG = "mlflow.note.content"
METRICS_PER_REQUEST = 1000  # limits of an MLflow server
NAMES_PER_REQUEST = 100
LONGEST_PARAM, LONGEST_TAG = 6000, 5000
ROWS_AT_ONCE = 1000
RUNNING = "RUNNING"


class RunMirror:
    """Brings the MLflow run of a run's directory up to date.

    What a store has is kept for each tracking URI in ``tracking_state.json``.

    Args:
        run_dir: The run's directory.
        uri: Tracking URI: ``sqlite:////path/to/mlflow.db``, ``http://host:5000``, ...
    """

    def __init__(self, run_dir: Path, uri: str) -> None:
        self.shown_dir = run_dir
        self.run_dir = run_dir.absolute()  # a thread must not follow the working directory
        self.uri = uri
        self.shown_uri = without_secrets(uri)
        self.record = RunRecord(self.run_dir)
        self._state_path = self.run_dir / STATE_FILE
        self._rows = {name: MetricRows(self.run_dir / name) for name in METRIC_FILES}
        self._client: MlflowClient | None = None
        self._known = False  # whether the store has confirmed, since the start, that it has the run

    @property
    def run_id(self) -> str | None:
        """The run's id in the store, None before it was created there."""
        run_id: str | None = self._state().get("run_id")
        return run_id

    def num_unsent(self) -> int:
        """Count the rows of metrics, files, parameters and tags that the store does not have."""
        state, record = self._state(), self.record.read()
        rows = sum(self._rows[name].count_after(state["rows"].get(name, 0)) for name in self._rows)
        files = sum(state["files"].get(name) != mark for name, mark in artifact_files(self.run_dir))
        named = sum(
            state[kind].get(name) != value
            for kind in ("params", "tags")
            for name, value in record.get(kind, {}).items()
        )
        return int(rows + files + named + (state["status"] != record["status"]))

    def num_refused(self) -> int:
        """Count the parts that the store has refused for good."""
        return len(self._state()["refused"])

    def update(self) -> None:
        """Send what the store does not have.

        Raises:
            MirrorBusyError: if another process does so at this moment.
            Exception: if the store fails or cannot be reached; what it has taken is kept in mind.
        """
        try:
            self._update()
        except MirrorBusyError:
            raise
        except Exception:
            self._known = False  # the store may have been replaced
            raise

    def _update(self) -> None:
        with self._alone():
            record, state = self.record.keep(), self._state()
            client = self._connected(record, state)
            ended = record["status"] != RUNNING
            if not ended and state["status"] != RUNNING:
                client.update_run(state["run_id"], status=RUNNING)
                self._save(state, status=RUNNING)
            self._send_params(client, state, record.get("params", {}))
            self._send_tags(client, state, record.get("tags", {}))
            self._send_dataset(client, state, record.get("dataset", {}))
            for name in self._rows:
                self._send_rows(client, state, name, record["start_time_ms"])
            self._send_files(client, state, ended)
            if ended:
                self._send_end(client, state, record)

    def ensure_run(self) -> str:
        """Return the run's id in the store, and create the run there if need be.

        Raises:
            Exception: if the store fails or cannot be reached.
        """
        with self._alone(timeout=30):
            state = self._state()
            self._connected(self.record.keep(), state)
            return str(state["run_id"])

    # -- the run ------------------------------------------------------------------------------

    def _connected(self, record: Content, state: Content) -> "MlflowClient":
        if self._client is None:
            self._client = connect(self.uri)
        if state["run_id"] is not None and not self._known and not self._store_has(state["run_id"]):
            state.clear()
            state.update(_nothing_sent())
        if state["run_id"] is None:
            run_id = self._find_or_create(self._client, record)
            self._save(state, run_id=run_id)
        self._known = True
        return self._client

    def _store_has(self, run_id: str) -> bool:
        assert self._client is not None
        try:
            self._client.get_run(run_id)
        except Exception as error:
            if is_gone(error):  # a new database, for instance
                return False
            raise
        return True

    def _find_or_create(self, client: "MlflowClient", record: Content) -> str:
        experiment_id = _experiment(client, record["experiment"])
        # An earlier attempt may have created it without hearing the answer.
        for run in client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{record['key']}'"):
            return str(run.info.run_id)
        tags = {KEY_TAG: record["key"]}
        if record.get("parent"):
            tags["mlflow.parentRunId"] = RunMirror(Path(record["parent"]), self.uri).ensure_run()
        run = client.create_run(
            experiment_id,
            start_time=record["start_time_ms"],
            run_name=record["run_name"],
            tags=tags,
        )
        return str(run.info.run_id)

    # -- its parts ----------------------------------------------------------------------------

    def _send_params(
        self, client: "MlflowClient", state: Content, params: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Param

        sent = state["params"]
        new = [(name, value) for name, value in params.items() if name not in sent]
        for part in _parts(new, NAMES_PER_REQUEST):
            entities = [Param(valid_name(k), v[:LONGEST_PARAM]) for k, v in part]
            self._offer(state, client, "params", entities)
            self._save(state, params=sent | dict(part))
            sent = state["params"]
        # A parameter of MLflow cannot change, but a resumed run may have another `max_steps`.
        changed = {name: value for name, value in params.items() if sent[name] != value}
        self._set_tags(client, {f"resumed_with/{name}": v for name, v in changed.items()})
        if changed:
            self._save(state, params=sent | changed)

    def _send_tags(self, client: "MlflowClient", state: Content, tags: Mapping[str, str]) -> None:
        new = {name: value for name, value in tags.items() if state["tags"].get(name) != value}
        if new:
            self._set_tags(client, new, state)
            self._save(state, tags=state["tags"] | new)

    def _set_tags(
        self, client: "MlflowClient", tags: Mapping[str, str], state: Content | None = None
    ) -> None:
        from mlflow.entities import RunTag

        state = state or self._state()
        for part in _parts(list(tags.items()), NAMES_PER_REQUEST):
            entities = [RunTag(valid_name(k), v[:LONGEST_TAG]) for k, v in part]
            self._offer(state, client, "tags", entities)

    def _send_dataset(
        self, client: "MlflowClient", state: Content, dataset: Mapping[str, str]
    ) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        if not dataset or state["dataset"] == dataset:
            return
        entity = Dataset(
            name=dataset["name"][:500],
            digest=dataset["digest"][:36],  # the longest that MLflow takes
            source_type="triptych",
            source=json.dumps({"uri": dataset["source"]}),
        )
        tags = [InputTag("mlflow.data.context", "training")]
        self._refusable(
            state,
            "the dataset",
            lambda: client.log_inputs(state["run_id"], [DatasetInput(entity, tags)]),
        )
        self._save(state, dataset=dict(dataset))

    def _send_rows(
        self, client: "MlflowClient", state: Content, name: str, start_time_ms: int
    ) -> None:
        while True:
            first, rows = self._rows[name].after(state["rows"].get(name, 0), ROWS_AT_ONCE)
            if not rows:
                return
            while rows:
                count = _num_in_one_request(rows)
                metrics = [
                    metric
                    for row in rows[:count]
                    if row is not None
                    for metric in _metrics(row, start_time_ms)
                ]
                for part in _parts(metrics, METRICS_PER_REQUEST):
                    self._offer(state, client, "metrics", part)
                first, rows = first + count, rows[count:]
                self._save(state, rows=state["rows"] | {name: first})

    def _send_files(self, client: "MlflowClient", state: Content, ended: bool) -> None:
        for name, mark in artifact_files(self.run_dir):
            still_grows = name in METRIC_FILES and not ended
            if still_grows or state["files"].get(name) == mark:
                continue
            self._refusable(state, name, partial(self._send_file, client, state, name))
            self._save(state, files=state["files"] | {name: mark})

    def _send_file(self, client: "MlflowClient", state: Content, name: str) -> None:
        path = self.run_dir / name
        folder = Path(name).parent.as_posix().removeprefix(".") or None
        table = table_of(path)
        if table is None:
            client.log_artifact(state["run_id"], str(path), folder)
            return
        # Not `log_table`: it appends to a table of the same name, and needs pandas.
        with tempfile.TemporaryDirectory() as place:
            copy = Path(place) / path.name
            copy.write_text(json.dumps(table, ensure_ascii=False))
            client.log_artifact(state["run_id"], str(copy), folder)
        tables = [*(t for t in state["tables"] if t != name), name]
        shown = [{"path": table_name, "type": "table"} for table_name in tables]
        while len(json.dumps(shown)) > LONGEST_TAG:
            shown.pop(0)
        client.set_tag(state["run_id"], TABLES_TAG, json.dumps(shown))
        self._save(state, tables=tables)

    def _send_end(self, client: "MlflowClient", state: Content, record: Content) -> None:
        fingerprint = export_fingerprint(self.run_dir)
        if fingerprint is not None and state["model"].get("fingerprint") != fingerprint:
            self._refusable(
                state, "the model", lambda: self._send_model(client, state, record, fingerprint)
            )
        note = describe(self.run_dir, self.shown_dir, record)
        if state["note"] != note:
            self._set_tags(client, {NOTE_TAG: note}, state)
            self._save(state, note=note)
        if state["status"] != record["status"]:
            client.set_terminated(state["run_id"], record["status"], record.get("end_time_ms"))
            self._save(state, status=record["status"])

    def _send_model(
        self, client: "MlflowClient", state: Content, record: Content, fingerprint: str
    ) -> None:
        run = client.get_run(state["run_id"])
        model_id = send_model(client, run, self.run_dir, record, fingerprint)
        self._save(state, model={"id": model_id, "fingerprint": fingerprint})

    # -- requests and state -------------------------------------------------------------------

    def _offer(
        self, state: Content, client: "MlflowClient", kind: str, entities: list[Any]
    ) -> None:
        """Log entities at once, or one by one if the store refuses some of them."""
        try:
            _log(client, state["run_id"], kind, entities)
        except Exception as error:
            if not is_refusal(error) or not self._store_has(state["run_id"]):
                raise
            for entity in entities:
                self._refusable(
                    state,
                    f"{kind} {entity.key}",
                    partial(_log, client, state["run_id"], kind, [entity]),
                )

    def _refusable(self, state: Content, name: str, send: Callable[[], Any]) -> None:
        """Send something; a refusal for good is said once and does not hold up the rest."""
        try:
            send()
        except FileNotFoundError:  # replaced or deleted after it was listed
            return
        except Exception as error:
            if not is_refusal(error) or not self._store_has(state["run_id"]):
                raise
            if name not in state["refused"]:
                log.warning("MLflow at %s refused %s: %s", self.shown_uri, name, error)
                self._save(state, refused={**state["refused"], name: str(error)[:500]})

    def _state(self) -> Content:
        known: Content = read_json(self._state_path).get(self.shown_uri, {})
        return _nothing_sent() | known

    def _save(self, state: Content, **changes: Any) -> None:
        state.update(changes)
        everywhere = read_json(self._state_path) | {self.shown_uri: state}
        with atomic_file(self._state_path) as partial:
            partial.write_text(json.dumps(everywhere, indent=1) + "\n")

    def _alone(self, timeout: float = 0) -> "AbstractContextManager[Any]":
        lock = filelock.FileLock(self.run_dir / ".tracking.lock")
        try:
            return lock.acquire(timeout=timeout)
        except filelock.Timeout as error:
            raise MirrorBusyError("another process is sending this run") from error


def _log(client: "MlflowClient", run_id: str, kind: str, entities: list[Any]) -> None:
    named: dict[str, Any] = {kind: entities}
    client.log_batch(run_id, **named)


def _nothing_sent() -> Content:
    return {
        "run_id": None,
        "status": None,
        "params": {},
        "tags": {},
        "dataset": {},
        "rows": {},
        "files": {},
        "tables": [],
        "model": {},
        "note": None,
        "refused": {},
    }


def _experiment(client: "MlflowClient", name: str) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return str(client.create_experiment(name))
        except MlflowException:  # another run has just created it
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _metrics(row: Row, start_time_ms: int) -> "list[Metric]":
    from mlflow.entities import Metric

    step, at_ms, values = row
    at_ms = start_time_ms if at_ms is None else at_ms
    return [Metric(valid_name(name), value, at_ms, step) for name, value in values.items()]


def _num_in_one_request(rows: list[Row | None]) -> int:
    """Count the rows at the front that fit into one request, at least one."""
    num_metrics = 0
    for count, row in enumerate(rows):
        num_metrics += 0 if row is None else len(row[2])
        if count > 0 and num_metrics > METRICS_PER_REQUEST:
            return count
    return len(rows)


def _parts(items: list[Any], size: int) -> list[list[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]
