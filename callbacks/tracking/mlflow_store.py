"""The connection to an MLflow store, and what can be said about its errors."""

import importlib
import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import filelock

from triptych.models.host.secrets import without_secrets

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

# An unreachable server must not block anything: one short attempt, then the mirror tries again.
# Variables that the user has set stay.
SHORT_REQUESTS = {
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "5",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_ENABLE_ASYNC_LOGGING": "false",
}
# MLflow would report every table it creates, and draw bars for the upload of files.
QUIET = {
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}
REFUSED = (400, 404, 409)  # HTTP statuses of requests that would fail again


def checked_uri(uri: str | None) -> str:
    """Return a tracking URI with the path of a database made absolute.

    MLflow keeps the path of a database open when the working directory changes.

    Raises:
        ModuleNotFoundError: if mlflow is not installed.
        ValueError: if MLflow no longer writes to URIs of this kind, or if it holds a password.
    """
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
    if uri.startswith("http") and urlsplit(uri).password:
        raise ValueError(
            "--tracking.uri has a password in it, which would be written to config.yaml and to "
            "messages. Set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the "
            "environment, and give the URI without them."
        )
    scheme, slashes, path = uri.partition(":///")
    return f"{scheme}{slashes}{Path(path).resolve()}" if scheme == "sqlite" else uri


def prepare_mlflow() -> None:
    """Import MLflow's client in this thread: two threads must not import the same modules."""
    for name, value in (SHORT_REQUESTS | QUIET).items():
        os.environ.setdefault(name, value)
    importlib.import_module("mlflow.tracking")


def connect(uri: str) -> "MlflowClient":
    """Open a store; the first process to open a database creates its tables, alone.

    Raises:
        Exception: if the store cannot be reached.
    """
    from mlflow.tracking import MlflowClient

    with _alone_with_database(uri):
        client = MlflowClient(tracking_uri=uri)
        client.search_experiments(max_results=1)
    return client


def lazy_client(uri: str) -> "MlflowClient":
    """Return a client that opens the store when it is first used.

    Lightning asks every logger for its ``experiment`` before training, which must not wait.
    """
    from mlflow.tracking import MlflowClient

    class LazyClient(MlflowClient):
        def __init__(self) -> None:  # the attributes come later
            pass

        def __getattr__(self, name: str) -> Any:
            if name.startswith("__") or "_registry_uri" in vars(self):
                raise AttributeError(name)
            with _alone_with_database(uri):
                MlflowClient.__init__(self, tracking_uri=uri)
            return getattr(self, name)

    return LazyClient()


def is_refusal(error: Exception) -> bool:
    """Return whether a store that can be reached has refused a request for good."""
    from mlflow.exceptions import MlflowException

    if not isinstance(error, MlflowException):
        return False
    status: int = error.get_http_status_code()  # type: ignore[no-untyped-call]  # untyped in MLflow
    return status in REFUSED


def is_gone(error: Exception) -> bool:
    """Return whether a store says that it does not know what was asked for."""
    return getattr(error, "error_code", None) == "RESOURCE_DOES_NOT_EXIST"


def valid_name(name: str) -> str:
    """Return a name of a metric, parameter or tag that every MLflow store takes.

    >>> valid_name("val/pass@4")
    'val/pass_4'
    """
    return re.sub(r"[^\w.\- /]", "_", name)[:250]


class MirrorBusyError(RuntimeError):
    """Another process sends the same run at this moment."""


def cause_of(error: Exception) -> str:
    """Return the innermost of the messages that HTTP clients wrap around each other.

    >>> cause_of(OSError('Max retries (Caused by NewConnectionError("host: [Errno 111] refused"))'))
    '[Errno 111] refused'
    """
    if isinstance(error, MirrorBusyError):
        return str(error)
    text = without_secrets(str(error))
    causes = re.findall(r"""\w+Error\((["'])(.*?)\1\)""", text)
    if causes:
        return str(causes[-1][1]).rpartition(": ")[2]
    return f"{type(error).__name__}: {text.partition(chr(10))[0]}"


@contextmanager
def _alone_with_database(uri: str) -> Iterator[None]:
    scheme, _, name = uri.partition(":///")
    if scheme != "sqlite":
        yield
        return
    path = Path(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(path.with_name(f".{path.name}.lock")):
        yield
