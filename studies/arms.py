"""Run the arms of a study over several seeds, in parallel, and skip finished runs."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import yaml
from rich.progress import Progress

from triptych.studies.study_tracking import tracking_words


@dataclass(frozen=True)
class Arm:
    """One training setup that a study compares with others.

    Args:
        name: Name in tables and figures.
        args: Command-line words after `fit`, without seed and run directory.
        start: Exported folder that the run of each seed starts from; None: `args` decide.
    """

    name: str
    args: tuple[str, ...]
    start: Mapping[int, Path] | None = None

    def words(self, seed: int) -> tuple[str, ...]:
        """Return the command-line words for one seed."""
        if self.start is None:
            return self.args
        return (*self.args, "--model.init_args.init_from", str(self.start[seed]))


class Afterwards(Protocol):
    """Work on a finished run, in the process that trained it, such as measuring its export."""

    def is_done(self, run: Path) -> bool:
        """Return whether the work on a run has been done."""
        ...

    def is_possible(self, run: Path) -> bool:
        """Return whether the run still holds what the work needs; else the run is repeated."""
        ...

    def __call__(self, run: Path) -> None:
        """Do the work, or what is left of it."""
        ...


#: Options that receive the seed if it also determines the data of a run.
SEED_OF_DATA_TOO = ("--seed_everything", "--data.init_args.seed")


def run_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    out: Path,
    num_workers: int = 2,
    seed_options: Sequence[str] = ("--seed_everything",),
    then: Afterwards | None = None,
) -> dict[str, list[Path]]:
    """Train every arm with every seed. Finished runs are not repeated.

    Each run is a `train.main` in a spawned process with one thread. Parallel runs then do not slow
    each other, and results do not depend on the number of workers. A process takes several runs in
    turn, because the imports take longer than a short run.

    Args:
        arms: Arms to run.
        seeds: Seeds of each arm.
        out: Folder of the study; the runs are stored in `runs/` below it.
        num_workers: Number of parallel runs.
        seed_options: Command-line options that receive the seed.
        then: Work to do on each finished run; it must be picklable.

    Raises:
        RuntimeError: if a run fails, with the path of its log; finished runs are kept.

    Returns:
        Run directories of each arm, in the order of the seeds.
    """
    places = {(arm.name, seed): run_dir(arm, seed, out) for arm in arms for seed in seeds}
    todo = [
        (arm, seed) for seed in seeds for arm in arms if not _finished(places[arm.name, seed], then)
    ]
    with Progress() as progress, worker_pool(num_workers) as pool:
        task = progress.add_task("runs", total=len(places), completed=len(places) - len(todo))
        jobs = {
            pool.submit(
                _train,
                (*arm.words(seed), *tracking_words(out, arm.name, seed)),
                seed_options,
                seed,
                places[arm.name, seed],
                then,
            ): (arm, seed)
            for arm, seed in todo
        }
        for job in as_completed(jobs):
            arm, seed = jobs[job]
            if error := job.exception():
                log = places[arm.name, seed].with_suffix(".log")
                raise RuntimeError(f"{arm.name}, seed {seed} failed, see {log}") from error
            progress.advance(task)
    return {arm.name: [places[arm.name, seed] for seed in seeds] for arm in arms}


@contextlib.contextmanager
def worker_pool(num_workers: int) -> Iterator[ProcessPoolExecutor]:
    """Start processes with one thread each, which end with this process."""
    context = multiprocessing.get_context("spawn")
    with (
        _single_threaded(),
        ProcessPoolExecutor(num_workers, context, initializer=end_with_parent) as pool,
    ):
        yield pool


def exported_start(init_from: str, out: Path, seed: int = 42, more: Sequence[str] = ()) -> Path:
    """Return the exported folder that arms start from.

    Args:
        init_from: The folder, or a config, which is then run once.
        out: Folder that stores this run.
        seed: Seed of this run.
        more: Further command-line words of this run.
    """
    if Path(init_from).suffix not in (".yaml", ".yml"):
        return Path(init_from)
    arm = Arm(Path(init_from).stem, ("--config", init_from, *more))
    (run,) = run_arms([arm], [seed], out)[arm.name]
    return run / "export"


def exports(seeds: Sequence[int], runs: Sequence[Path]) -> dict[int, Path]:
    """Return the exported folder of each seed's run."""
    return {seed: run / "export" for seed, run in zip(seeds, runs, strict=True)}


def device_of(*runs: Sequence[Path]) -> str:
    """Return the devices of runs, as their summaries name them, joined by commas."""
    return ", ".join(sorted({read_summary(run)["device"] for dirs in runs for run in dirs}))


def run_dir(arm: Arm, seed: int, out: Path) -> Path:
    """Return the directory of an arm's run with a seed; it depends on the settings.

    The settings are the command-line words and the text of the configs that they name. Configs that
    are named inside those configs are not read.
    """
    # The start folder contains the seed. A different seed alone is not a different arm.
    words = [word.replace(f"seed{seed}", "seed") for word in arm.words(seed)]
    configs = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    words += [path.read_text(encoding="utf-8") for path in configs if path.is_file()]
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    return out / "runs" / f"{arm.name}-{key}" / f"seed{seed}"


def seed_words(seed: int, seed_options: Sequence[str] = SEED_OF_DATA_TOO) -> list[str]:
    """Return the command-line words that set the seed of a run."""
    return [word for option in seed_options for word in (option, str(seed))]


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Read the `summary.json` of a run."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def end_with_parent() -> None:
    """Exit this process when its parent exits, even if the parent is killed.

    An orphaned run would continue for hours beside the run that replaces it.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker of a pool has one

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _train(
    args: Sequence[str],
    seed_options: Sequence[str],
    seed: int,
    place: Path,
    then: Afterwards | None,
) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = place / "checkpoints" / "last.ckpt"
    is_trained = _finished(place) and (then is None or then.is_possible(place))
    if not is_trained and (_finished(place) or not checkpoint.exists()):
        # Nothing that the run could continue from.
        shutil.rmtree(place, ignore_errors=True)
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint.exists() else []
    words = ["fit", *args, *seed_words(seed, seed_options), "--run_dir", str(place), *resume]
    with place.with_suffix(".log").open("a") as log:
        # Redirect the file descriptors: loggers keep references to the streams between runs.
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    # Imported in the worker only: a study whose runs are all finished does not need torch.
    if not is_trained:
        from triptych.cli import main

        main(words)
    if then is not None:
        then(place)


def _finished(place: Path, then: Afterwards | None = None) -> bool:
    path = place / "summary.json"
    is_trained = path.exists() and json.loads(path.read_text())["status"] == "finished"
    return is_trained and (then is None or then.is_done(place))


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Limit processes that are started inside the context to one thread each."""
    before = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS")}
    os.environ.update(dict.fromkeys(before, "1"))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


Settings = dict[str, Any]


def probe(class_path: str, **settings: Any) -> Settings:
    """Return a class and its settings in the form of a YAML config."""
    return {"class_path": class_path, "init_args": settings}


def written(
    name: str, content: Settings, folder: Path, start: Mapping[int, Path] | None = None
) -> Arm:
    """Write the configuration of an arm to a file that runs as it is."""
    content["trainer"] |= {"accelerator": "cpu", "devices": 1}
    content["tracking"] = {"uri": None}  # unless the study is tracked, see `tracking_words`
    text = yaml.safe_dump(content, sort_keys=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_').replace('/', '-')}-{key}.yaml"
    path.write_text(text)
    return Arm(name, ("--config", str(path)), start)
