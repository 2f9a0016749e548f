"""The directory and the name of a run."""

import os
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_only

from triptych import ROOT
from triptych.callbacks.run.owner_lock import OwnerLock

CONFIGS = ROOT / "configs"
_FROM_RANK_ZERO = "TRIPTYCH_RUN_DIR"


@dataclass(frozen=True)
class RunDirectory:
    """The folder of one run, which no other run shares.

    Attributes:
        path: The folder, relative to the working directory unless the user gave an absolute path.
        name: Name of the run in trackers.
        experiment: Name by which trackers group runs.
        lock: The right to write into the folder; only the first process of a run has it.
    """

    path: Path
    name: str
    experiment: str
    lock: OwnerLock | None = field(default=None, compare=False, repr=False)

    @classmethod
    def claim(
        cls,
        experiment: str,
        seed: int,
        run_dir: str | None = None,
        run_name: str | None = None,
        resumed_from: str | None = None,
    ) -> "RunDirectory":
        """Take a folder for a new run, or that of the run that is resumed in place.

        All processes of a run agree on the folder. Those started by Lightning get it from rank 0;
        those started by torchrun or SLURM derive it from the job's id. Only rank 0 creates it.

        Args:
            experiment: Group of the run, possibly with slashes.
            seed: Seed of the run.
            run_dir: The folder, if the user chose one.
            run_name: The name, if the user chose one.
            resumed_from: Checkpoint from which training resumes.

        Raises:
            ValueError: if the folder already holds another run, another process works in it, or
                processes on several machines have nothing to agree by.
        """
        if run_dir is None and run_name is None:
            _refuse_nameless_machines()
        stamp = job_id() or datetime.now().strftime("%Y%m%d-%H%M%S")
        name = run_name or f"{experiment.rsplit('/', 1)[-1]}-seed{seed}-{stamp}"
        folder = Path("runs") / experiment / (run_name or f"{stamp}-seed{seed}")
        chosen = None if _rank() == 0 else os.environ.get(_FROM_RANK_ZERO)
        lock = None
        if chosen:
            path = Path(chosen)
        elif run_dir is not None or run_name is not None or job_id():
            path = Path(run_dir) if run_dir is not None else folder
        else:
            path = _first_free(folder)
        if _rank() == 0:
            _make_folder(path)
            lock = _own(path)
            try:
                _refuse_another_run(path, resumed_from)
            except ValueError:
                lock.release()
                raise
        os.environ[_FROM_RANK_ZERO] = str(path)
        return cls(path, name, experiment, lock)

    def release(self) -> None:
        """Let other processes work in the folder."""
        if self.lock is not None:
            self.lock.release()

    def release_if_empty(self) -> None:
        """Remove the folder if the run failed before it wrote anything."""
        self.release()
        if _rank() == 0 and self.path.is_dir() and not any(self.path.iterdir()):
            self.path.rmdir()


def experiment_name(configs: list[str]) -> str:
    """Name the experiment after its configuration file, the first one on the command line.

    >>> experiment_name([str(CONFIGS / "remember" / "pretrain.yaml"), "cpu.yaml"])
    'remember/pretrain'
    >>> experiment_name(["elsewhere/mine.yaml"])
    'mine'
    >>> experiment_name([])
    'unnamed'
    """
    if not configs:
        return "unnamed"
    path = Path(configs[0]).resolve()
    inside = path.is_relative_to(CONFIGS)
    return (path.relative_to(CONFIGS) if inside else Path(path.name)).with_suffix("").as_posix()


def _rank() -> int:
    undeclared: Any = rank_zero_only
    return int(undeclared.rank)


def job_id() -> str | None:
    """Return the id that all processes of a torchrun or SLURM job share; None for other runs."""
    if "TORCHELASTIC_RUN_ID" in os.environ:
        job = os.environ["TORCHELASTIC_RUN_ID"]
        # torchrun without --standalone or --rdzv_id calls every job "none". On one machine its
        # process id is common to all ranks.
        return f"torchrun-{os.getppid()}" if job == "none" else job
    if "SLURM_PROCID" in os.environ and "SLURM_JOB_ID" in os.environ:
        return f"slurm-{os.environ['SLURM_JOB_ID']}"
    return None


def _refuse_nameless_machines() -> None:
    """Refuse torchrun on several machines without an id, by which each would take its own folder.

    Raises:
        ValueError: if so.
    """
    machines = int(os.environ.get("GROUP_WORLD_SIZE", "1"))
    if os.environ.get("TORCHELASTIC_RUN_ID") == "none" and machines > 1:
        raise ValueError(
            f"torchrun runs on {machines} machines, but the job has no id, by which they would "
            "agree on the run's directory: give torchrun --rdzv_id NAME, a new name for each run "
            "and the same on all machines (or give train.py --run_dir)"
        )


def _refuse_another_run(path: Path, resumed_from: str | None) -> None:
    if int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0:
        return
    resumed_here = resumed_from is not None and Path(resumed_from).resolve().is_relative_to(
        path.resolve()
    )
    taken = (path / "summary.json").exists() or any(path.glob("checkpoints/*.ckpt"))
    if taken and not resumed_here:
        raise ValueError(
            f"--run_dir {path} already holds a run. Choose another folder, or resume that run: "
            f"--run_dir {path} --ckpt_path {path / 'checkpoints' / 'last.ckpt'}"
        )


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"--run_dir {path} cannot be made a folder ({error.strerror}): choose another place"
        ) from error


def _own(path: Path) -> OwnerLock:
    try:
        return OwnerLock(path)
    except OSError as error:
        raise ValueError(
            f"--run_dir {path} cannot be written to ({error.strerror}): choose another place"
        ) from error


def _first_free(folder: Path) -> Path:
    """Create the folder, or the one with the first free number behind its name."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    path, number = folder, 1
    while True:
        try:
            path.mkdir()
        except FileExistsError:
            number += 1
            path = folder.with_name(f"{folder.name}-{number}")
        else:
            return path
