"""The load of the machine during a run: ``system_metrics.csv`` in its directory."""

import csv
import importlib.util
import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from triptych.callbacks.tracking.local_metrics import TIME
from triptych.callbacks.tracking.run_files import SYSTEM_METRICS_FILE, MetricRows

log = logging.getLogger(__name__)


class SystemMetrics:
    """Writes the use of CPU, memory, disk, network and GPUs at regular times.

    The values are those of MLflow's monitors, as ``system/<name>``. They go into a file of the
    run's directory, so that a store that does not answer costs the run nothing.

    Args:
        run_dir: The run's directory.
        seconds: Time between two rows.
        on_row: Called after each row.
    """

    def __init__(self, run_dir: Path, seconds: float, on_row: Callable[[], None]) -> None:
        self._path = run_dir / SYSTEM_METRICS_FILE
        self._seconds = seconds
        self._on_row = on_row
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system metrics", daemon=True)

    def start(self) -> None:
        """Start a thread that writes the rows."""
        self._thread.start()

    def stop(self) -> None:
        """Write no more rows."""
        self._ended.set()

    def _run(self) -> None:
        try:
            monitors = _monitors()
            step = MetricRows(self._path).count_after(0)  # a resumed run continues the rows
            while not self._ended.wait(self._seconds):
                values: dict[str, float] = {}
                for monitor in monitors:
                    monitor.collect_metrics()
                    values |= monitor.aggregate_metrics()
                    monitor.clear_metrics()
                self._write(step, values)
                step += 1
                self._on_row()
        except Exception as error:  # a sensor may be missing; the run goes on
            log.warning("system metrics are no longer written: %s: %s", type(error).__name__, error)

    def _write(self, step: int, values: dict[str, float]) -> None:
        row = {"step": step, TIME: round(time.time(), 3)}
        row |= {f"system/{name}": value for name, value in sorted(values.items())}
        names = list(row)
        is_new = not self._path.is_file()
        if not is_new:
            with self._path.open(newline="") as file:
                names = next(csv.reader(file), names)
        with self._path.open("a", newline="") as file:
            writer = csv.DictWriter(file, names, extrasaction="ignore")
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def can_read_system() -> bool:
    """Return whether psutil is there, which MLflow's monitors need."""
    return importlib.util.find_spec("psutil") is not None


def _monitors() -> list[Any]:
    from mlflow.system_metrics.metrics.cpu_monitor import CPUMonitor
    from mlflow.system_metrics.metrics.disk_monitor import DiskMonitor
    from mlflow.system_metrics.metrics.gpu_monitor import GPUMonitor
    from mlflow.system_metrics.metrics.network_monitor import NetworkMonitor

    kinds: list[Any] = [CPUMonitor, DiskMonitor, NetworkMonitor]  # untyped in MLflow
    found = [kind() for kind in kinds]
    with suppress(Exception):  # no NVIDIA driver, or no nvidia-ml-py
        gpu: Any = GPUMonitor
        found.append(gpu())
    return found
