"""Experiments that another experiment starts from.

``init_from`` names an exported folder, or the configuration of an experiment that exports one. That
experiment then runs first, once. Its run directory is kept under ``runs/stages``, by a fingerprint
of its composed configuration and of the local files named there.

It takes accelerator and precision of the run that needs it, and runs in one process, on the first
device of that run, unless its own file names more: batch sizes count per process, so the exported
model would otherwise depend on the machine. Another precision is another stage; another
accelerator, or another device, is not.

Of several processes, rank 0 runs it and the others wait; ``runs/stages`` has to be on storage that
all machines share.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
from jsonargparse import Namespace
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only

from triptych import ROOT
from triptych.callbacks.command_line.processes import chosen_devices, num_devices
from triptych.callbacks.run.owner_lock import is_in_use
from triptych.callbacks.run.run_directory import job_id
from triptych.models.host.checked_folder import read_settings
from triptych.models.host.parent_process import VARIABLE as PARENT

# Options that do not change the exported model.
RUN_SPECIFIC = (
    "experiment",
    "callback",  # set in `trainer.callbacks` by now
    "run_name",
    "run_dir",
    "tracking",
    "ckpt_path",
    "trainer.logger",
    "trainer.default_root_dir",
    "trainer.enable_progress_bar",
    "trainer.log_every_n_steps",
    "trainer.accelerator",
)
# What Lightning takes these values of `trainer.precision` for.
_PRECISIONS = {None: "32-true", "32": "32-true", "64": "64-true"} | {
    kind: f"{kind}-mixed" for kind in ("16", "bf16")
}
_SECONDS_BETWEEN_LOOKS = 1.0
_SECONDS_TO_END = 60.0  # of a stage that is interrupted
LARGEST_HASHED_BYTES = 64 * 2**20  # larger files count by size and modification time
DISTRIBUTED_PREFIXES = ("TORCHELASTIC_", "SLURM_", "PL_", "TRIPTYCH_RUN_DIR")
DISTRIBUTED_VARIABLES = {
    *("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "NODE_RANK"),
    *("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE"),
    *("MASTER_ADDR", "MASTER_PORT", "ROLE_NAME"),
}


class StageError(RuntimeError):
    """The experiment that another one starts from has failed."""


@dataclass(frozen=True)
class Stage:
    """An experiment that runs for its exported model.

    Attributes:
        config: Its configuration file.
        composed: Its composed configuration, which decides whether a cached run is used.
        options: Words of the command line after the configuration file; `composed` includes them.
    """

    config: Path
    composed: dict[str, Any]
    options: tuple[str, ...] = ()

    def export(self) -> Path:
        """Return the exported folder; run the experiment first if it has not run before.

        Raises:
            StageError: if the experiment fails, or exports nothing.
        """
        run_dir = Path("runs") / "stages" / f"{self.config.stem}-{self.fingerprint()[:12]}"
        run_dir.parent.mkdir(parents=True, exist_ok=True)
        if _rank() > 0:
            self._wait(run_dir)
        else:
            with _locked(run_dir.with_name(f".{run_dir.name}.lock"), str(self.config)):
                if not _is_finished(run_dir):
                    self._run(run_dir)
        if not (run_dir / "export").is_dir():
            raise StageError(
                f"init_from: {self.config} ran, but exported no model into {run_dir}. "
                "Its module needs a `model` with `save_pretrained`, and the callback "
                "triptych.callbacks.run.export_model.ExportModel."
            )
        return run_dir / "export"

    def fingerprint(self) -> str:
        """Hash all that the outcome depends on, except for the version of the code."""
        kept = json.loads(json.dumps(self.composed, default=str))
        for key in RUN_SPECIFIC:
            *parents, last = key.split(".")
            node = kept
            for parent in parents:
                node = node.get(parent) or {}
            node.pop(last, None)
        _without_names(kept.get("trainer") or {})
        digest = hashlib.sha256(json.dumps(kept, sort_keys=True).encode())
        for text in sorted(set(_strings(kept))):
            digest.update(_file_fingerprint(Path(text)))
        return digest.hexdigest()

    def _wait(self, run_dir: Path) -> None:
        """Wait until rank 0 has run the experiment.

        Raises:
            StageError: if it failed there.
        """
        failure = _failure_of(run_dir)
        if not _is_finished(run_dir) and _speaks_for_machine():
            print(
                f"init_from: process {_rank()} waits for process 0, which runs {self.config} "
                f"first. The result is read from {run_dir.parent.resolve()}, which has to be on "
                "storage that all machines share.",
                file=sys.stderr,
                flush=True,
            )
        while not _is_finished(run_dir):
            if failure.is_file() and failure.read_text() == _attempt():
                raise StageError(f"init_from: {self.config} failed in process 0, see there")
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _run(self, run_dir: Path) -> None:
        _failure_of(run_dir).unlink(missing_ok=True)
        try:
            self._run_alone(run_dir)
        except BaseException:
            _failure_of(run_dir).write_text(_attempt())  # for the processes that wait
            raise

    def _run_alone(self, run_dir: Path) -> None:
        partial = run_dir.with_name(f".{run_dir.name}.partial")
        failed = run_dir.with_name(f"{run_dir.name}.failed")
        _wait_for_owner(partial, str(self.config))
        checkpoint = partial / "checkpoints" / "last.ckpt"
        resumed = checkpoint.is_file() and not _is_finished(partial)
        for earlier in (failed, run_dir) if resumed else (partial, failed, run_dir):
            shutil.rmtree(earlier, ignore_errors=True)
        verb = "going on with" if resumed else "running"
        rank_zero_info(f"init_from: {verb} {self.config} first; the run is kept as {run_dir}")
        words = ["fit", "--config", str(self.config), "--run_dir", str(partial), *self.options]
        words += ["--ckpt_path", str(checkpoint)] if resumed else []
        code = _run_to_its_end([sys.executable, "-m", "triptych", *words])
        if code != 0 or not _is_finished(partial):
            if partial.is_dir():
                partial.rename(failed)
            kept = f" The files of that run are in {failed}." if failed.is_dir() else ""
            raise StageError(
                f"init_from: {self.config} failed with exit code {code}, see above. It has to run "
                f"first: correct it, then give this command again.{kept}"
            )
        partial.rename(run_dir)


def _run_to_its_end(command: list[str]) -> int:
    """Run a command that ends with this process, and return its exit code.

    An exception here, such as a signal, ends the command too: it gets SIGTERM and time to write a
    checkpoint.
    """
    environment = _environment() | {PARENT: str(os.getpid())}
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait()
        except BaseException:
            process.terminate()
            try:
                process.wait(_SECONDS_TO_END)
            except BaseException:  # too slow, or a second signal
                process.kill()
            raise


def _wait_for_owner(partial: Path, config: str) -> None:
    """Wait for an earlier process of the stage, which has lost its parent and ends."""
    if is_in_use(partial):
        rank_zero_info(f"init_from: an earlier run of {config} is still ending; waiting for it")
    while is_in_use(partial):
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def inherited(trainer: Namespace) -> list[str]:
    """Return options of a stage that follow from the trainer of the run that needs it.

    Args:
        trainer: The options ``trainer`` of that run.
    """
    words = []
    if trainer.get("accelerator") not in (None, "auto"):
        words += ["--trainer.accelerator", str(trainer.accelerator)]
    if trainer.get("precision") is not None:
        words += ["--trainer.precision", str(trainer.precision)]
    chosen = chosen_devices(trainer.get("devices"))
    if chosen:
        words += ["--trainer.devices", f"[{chosen[0]}]"]
    return words


def _without_names(trainer: dict[str, Any]) -> None:
    """Keep the number of devices in place of their indices, and one name for each precision."""
    if "devices" in trainer:
        trainer["devices"] = num_devices(trainer["devices"])
    precision = trainer.get("precision")
    name = None if precision is None else str(precision)
    trainer["precision"] = _PRECISIONS.get(name, name)


@contextmanager
def _locked(path: Path, config: str) -> Iterator[None]:
    """Hold the lock of a stage, and say so if another run holds it."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        rank_zero_info(f"init_from: another run is running {config}; waiting for its result")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _rank() -> int:
    undeclared: Any = rank_zero_only
    return int(undeclared.rank)


def _speaks_for_machine() -> bool:
    """Whether this is the first process on its machine that waits."""
    local = os.environ.get("LOCAL_RANK", os.environ.get("SLURM_LOCALID", "0"))
    return local == "0" or _rank() == 1


def _attempt() -> str:
    """Name the job and its restart, which all its processes share."""
    known = os.environ.get
    job = job_id() or f"{known('MASTER_ADDR')}:{known('MASTER_PORT')}"
    return f"{job} {known('TORCHELASTIC_RESTART_COUNT')} {known('SLURM_RESTART_COUNT')}"


def _failure_of(run_dir: Path) -> Path:
    return run_dir.with_name(f".{run_dir.name}.failure")


def _is_finished(run_dir: Path) -> bool:
    summary = run_dir / "summary.json"
    return summary.is_file() and read_settings(summary).get("status") == "finished"


def _environment() -> dict[str, str]:
    """Return the environment without variables that would make the stage a rank of this run."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in DISTRIBUTED_VARIABLES and not name.startswith(DISTRIBUTED_PREFIXES)
    }
    if (ROOT / "train.py").is_file():  # a clone is not installed, and may not be the working folder
        kept["PYTHONPATH"] = os.pathsep.join(filter(None, [kept.get("PYTHONPATH"), str(ROOT)]))
    return kept


def _strings(node: Any) -> Iterator[str]:
    if isinstance(node, str):
        yield node
    elif isinstance(node, dict | list):
        for child in node.values() if isinstance(node, dict) else node:
            yield from _strings(child)


def _file_fingerprint(path: Path) -> bytes:
    """Hash a file, or list a folder; return nothing for text that names neither."""
    try:
        if path.is_dir() and len(path.parts) > 1:  # a single word is read as a name
            entries = [(e.name, e.stat().st_size, e.stat().st_mtime_ns) for e in path.iterdir()]
            return repr(sorted(entries)).encode()
        if not path.is_file():
            return b""
        stat = path.stat()
    except (OSError, ValueError):  # too long for a path, or with a null byte: plain text
        return b""
    if stat.st_size > LARGEST_HASHED_BYTES:
        return f"{stat.st_size} {stat.st_mtime_ns}".encode()
    return hashlib.sha256(path.read_bytes()).digest()
