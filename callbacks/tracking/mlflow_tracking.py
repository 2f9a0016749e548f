"""An MLflow logger that never stops or slows a run.

The run's directory is complete by itself; a thread brings the MLflow run up to date with it.
``python -m triptych.callbacks.tracking.mlflow_tracking RUN_DIR --tracking_uri URI`` does the same
for a run that has ended, into any store and as often as you like.
"""

import argparse
import sys
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lightning.fabric.utilities.logger import _convert_params, _flatten_dict
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.exceptions import SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from typing_extensions import override

from triptych.callbacks.tracking.local_metrics import LocalMetrics
from triptych.callbacks.tracking.mirror_thread import MirrorThread
from triptych.callbacks.tracking.mlflow_store import (
    cause_of,
    checked_uri,
    lazy_client,
    prepare_mlflow,
)
from triptych.callbacks.tracking.run_mirror import RunMirror
from triptych.callbacks.tracking.system_metrics import SystemMetrics, can_read_system
from triptych.callbacks.trainer_parts import is_first_rank
from triptych.models.host.secrets import settings_without_secrets, without_secrets

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

SECONDS_FOR_RUN_ID = 10.0


class MLflowTracking(Logger):
    """Logs into the run's directory, and mirrors that into any MLflow store from a thread.

    An unreachable store costs the run nothing: the directory has metrics, tables and figures, and
    what the store lacks is sent later. It is tried again during the run and, for a limited time, at
    its end. A resumed run continues the same MLflow run.

    Metrics are written by a `LocalMetrics` of its own, so a run needs no other logger.

    Args:
        uri: ``sqlite:///mlflow.db``, the URI of any MLflow server, or null for no tracking.
        flush_seconds: Longest time that the end of the run waits for the store.
        tags: Tags of the run, beside those that every run has.
        system_seconds: Time between two readings of CPU, memory and GPUs; 0 for none.
        parent: Directory of the study that the run belongs to, which is its parent run.
        experiment: MLflow experiment of the run.
        run_name: Name of the run.
        run_dir: The run's directory.

    Raises:
        ModuleNotFoundError: if mlflow is not installed.
        ValueError: if the URI is of a kind that MLflow no longer writes to, or has a password.
    """

    GIVEN_BY_RUN: ClassVar = {"experiment", "run_name", "run_dir"}

    def __init__(
        self,
        uri: str | None = "sqlite:///mlflow.db",
        flush_seconds: float = 30.0,
        tags: dict[str, str] | None = None,
        system_seconds: float = 10.0,
        parent: str | None = None,
        *,
        experiment: str,
        run_name: str,
        run_dir: str | Path,
    ) -> None:
        super().__init__()
        self._uri = checked_uri(uri)
        self._shown_uri = without_secrets(self._uri)
        prepare_mlflow()
        self._flush_seconds = flush_seconds
        self._tags = tags or {}
        self._system_seconds = system_seconds
        self._parent = Path(parent) if parent else None
        self._experiment_name = experiment
        self._run_name = run_name
        self._run_dir = Path(run_dir)
        self._local = LocalMetrics(run_dir)
        self._mirror = RunMirror(self._run_dir, self._uri)
        self._thread: MirrorThread | None = None
        self._system: SystemMetrics | None = None
        self._last_step = 0

    # -- what Lightning asks of a logger ------------------------------------------------------

    @property
    @override
    def name(self) -> str:
        return self._experiment_name

    @property
    @override
    def version(self) -> str:
        return self._run_name

    @property
    @override
    def save_dir(self) -> str:
        return str(self._run_dir)

    @property
    @rank_zero_experiment
    def experiment(self) -> "MlflowClient":
        """MLflow's own client, to log what Triptych does not. Its methods may block and fail."""
        return lazy_client(self._uri)

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run, on rank 0; None if the store does not answer in 10 seconds."""
        return self._mirrored_run_id()

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._local.log_metrics(dict(metrics), step)
        self._local.save()
        self._last_step = max(self._last_step, step or 0)
        self._changed()

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        flat = _flatten_dict(_convert_params(params), delimiter=".")
        self._begin()
        named = {name: str(value) for name, value in settings_without_secrets(flat).items()}
        self._mirror.record.add("params", named)
        self._changed()

    @rank_zero_only
    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        self._begin()
        self._mirror.record.add("tags", settings_without_secrets(tags))
        self._changed()

    @rank_zero_only
    def log_dataset(self, name: str, digest: str, source: str) -> None:
        """Say which data the run trains on.

        Args:
            name: Name of the data.
            digest: Their fingerprint.
            source: Where they come from.
        """
        self._begin()
        self._mirror.record.add(
            "dataset", {"name": name, "digest": digest, "source": without_secrets(source)}
        )
        self._changed()

    @rank_zero_only
    def files_changed(self) -> None:
        """Say that the run's directory has a new table, figure or other file."""
        self._changed()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Set the status of the run, wait for the store, and report what it does not have."""
        self._local.finalize(status)
        if self._thread is None:
            return
        if self._system is not None:
            self._system.stop()
        interrupted = isinstance(sys.exc_info()[1], KeyboardInterrupt | SIGTERMException)
        final = "FINISHED" if status == "success" else "KILLED" if interrupted else "FAILED"
        self._mirror.record.end(final, self._last_step)
        self._thread.flush(self._flush_seconds)
        if message := self._unsent_message():
            rank_zero_info(message)

    @rank_zero_only
    def close(self) -> None:
        """Send what came after `finalize`, such as ``summary.json``; nothing to a silent store."""
        if self._thread is None or self._thread.last_error is not None:
            return
        if not self._thread.flush(self._flush_seconds) and (message := self._unsent_message()):
            rank_zero_info(message)

    def status(self) -> dict[str, Any]:
        """Return the entry of tracking in ``summary.json``."""
        started = self._thread is not None
        return {
            "uri": self._shown_uri,
            "experiment": self._experiment_name,
            "run_name": self._run_name,
            "run_id": self._mirror.run_id if started else None,
            "num_unsent": self._mirror.num_unsent() if started else 0,
            "num_refused": self._mirror.num_refused() if started else 0,
        }

    # -- the mirror ---------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._thread is not None:
            return
        self._run_dir.mkdir(parents=True, exist_ok=True)
        record = self._mirror.record
        record.begin(self._experiment_name, self._run_name, self._parent)
        record.add("tags", settings_without_secrets(context_tags() | self._tags))
        self._thread = MirrorThread(self._mirror, f"MLflow at {self._shown_uri}")
        if self._system_seconds > 0 and can_read_system():
            self._system = SystemMetrics(
                self._mirror.run_dir, self._system_seconds, self._thread.wake
            )
            self._system.start()

    def _changed(self) -> None:
        self._begin()
        assert self._thread is not None
        self._thread.wake()

    def _mirrored_run_id(self) -> str | None:
        if not is_first_rank():
            return None
        if self._mirror.run_id is None:
            self._changed()
            assert self._thread is not None
            self._thread.flush(SECONDS_FOR_RUN_ID)
        return self._mirror.run_id

    def _unsent_message(self) -> str:
        assert self._thread is not None
        lines = []
        if num_unsent := self._mirror.num_unsent():
            lines.append(
                f"MLflow at {self._shown_uri} lacks {num_unsent} parts of this run "
                f"({self._thread.last_error or 'there was no time left'}). {self._run_dir} has "
                "everything; send the rest later with\n"
                f"  {resend_command(self._run_dir, self._shown_uri)}"
            )
        if num_refused := self._mirror.num_refused():
            lines.append(
                f"MLflow at {self._shown_uri} refused {num_refused} parts of this run for good"
            )
        return "\n".join(lines)


def context_tags() -> dict[str, str]:
    """Return the user, the program and the git commit, as `mlflow.start_run` finds them."""
    from mlflow.tracking.context.registry import resolve_tags

    return {name: str(value) for name, value in resolve_tags().items()}


def resend_command(run_dir: Path, uri: str) -> str:
    """Return the command that mirrors a run later."""
    return f"python -m triptych.callbacks.tracking.mlflow_tracking {run_dir} --tracking_uri {uri}"


def resend(run_dir: Path, uri: str) -> int:
    """Mirror a run that has ended into a store, and return the number of parts it still lacks.

    Raises:
        Exception: if the store fails or cannot be reached.
    """
    uri = checked_uri(uri)
    prepare_mlflow()
    mirror = RunMirror(run_dir, uri)
    mirror.update()
    return mirror.num_unsent()


def main() -> None:
    """Mirror the run that the command line names."""
    parser = argparse.ArgumentParser(
        prog="python -m triptych.callbacks.tracking.mlflow_tracking",
        description="Send what an MLflow store lacks of a run.",
    )
    parser.add_argument("run_dir", type=Path, help="directory of the run")
    parser.add_argument("--tracking_uri", required=True, help="MLflow store or server")
    options = parser.parse_args()
    if not options.run_dir.is_dir():
        parser.error(f"there is no directory {options.run_dir}")
    shown = without_secrets(options.tracking_uri)
    try:
        num_left = resend(options.run_dir, options.tracking_uri)
    except Exception as error:
        sys.exit(f"{options.run_dir} could not be sent to {shown}: {cause_of(error)}")
    if num_left:
        sys.exit(f"{shown} still lacks {num_left} parts of {options.run_dir}")
    print(f"{shown} has all of {options.run_dir}")


if __name__ == "__main__":
    main()
