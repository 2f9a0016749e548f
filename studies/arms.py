"""Runs the arms of a study, each over several seeds, two at a time, and remembers what is done."""

import contextlib
import hashlib
import json
import multiprocessing
import os
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.progress import Progress


@dataclass(frozen=True)
class Arm:
    """One way of training that a study compares with others.

    Args:
        name: As it appears in tables and figures.
        args: Words of the command line after `fit`, without seed and run directory.
        start: For each seed, the exported folder that the run starts from.
    """

    name: str
    args: tuple[str, ...]
    start: Mapping[int, Path] | None = None

    def words(self, seed: int) -> tuple[str, ...]:
        """Words of the command line for one seed."""
        if self.start is None:
            return self.args
        return (*self.args, "--model.init_args.init_from", str(self.start[seed]))


#: Options that take the seed where a run's data are drawn by it as well.
SEED_OF_DATA_TOO = ("--seed_everything", "--data.init_args.seed")


def run_arms(
    arms: Sequence[Arm],
    seeds: Sequence[int],
    out: Path,
    num_workers: int = 2,
    seed_options: Sequence[str] = ("--seed_everything",),
) -> dict[str, list[Path]]:
    """Train every arm with every seed; runs that finished before are not repeated.

    Each run is a `train.main` in a spawned process with one thread, so that runs side by side do
    not slow each other and results do not depend on how many there are. A process takes one run
    after another: what a run needs to import takes longer than many a run.

    Args:
        arms: What to run.
        seeds: Seeds of each arm.
        out: Folder of the study; runs are kept in `runs/` under it.
        num_workers: Runs at a time.
        seed_options: Options of the command line that take the seed.

    Raises:
        RuntimeError: if a run fails, naming its log; finished runs are kept.

    Returns:
        For each arm its run directories, in the order of the seeds.
    """
    places = {(arm.name, seed): run_dir(arm, seed, out) for arm in arms for seed in seeds}
    todo = [(arm, seed) for seed in seeds for arm in arms if not _finished(places[arm.name, seed])]
    context = multiprocessing.get_context("spawn")
    with (
        _single_threaded(),
        Progress() as progress,
        ProcessPoolExecutor(num_workers, context, initializer=end_with_parent) as pool,
    ):
        task = progress.add_task("runs", total=len(places), completed=len(places) - len(todo))
        jobs = {
            pool.submit(_train, arm.words(seed), seed_options, seed, places[arm.name, seed]): (
                arm,
                seed,
            )
            for arm, seed in todo
        }
        for job in as_completed(jobs):
            arm, seed = jobs[job]
            if error := job.exception():
                log = places[arm.name, seed].with_suffix(".log")
                raise RuntimeError(f"{arm.name}, seed {seed} failed, see {log}") from error
            progress.advance(task)
    return {arm.name: [places[arm.name, seed] for seed in seeds] for arm in arms}


def exported_start(init_from: str, out: Path, seed: int = 42, more: Sequence[str] = ()) -> Path:
    """The exported folder that arms start from.

    Args:
        init_from: The folder, or a config, which is then run once.
        out: Where that run is kept.
        seed: Its seed.
        more: Further words of that run's command line.
    """
    if Path(init_from).suffix not in (".yaml", ".yml"):
        return Path(init_from)
    arm = Arm(Path(init_from).stem, ("--config", init_from, *more))
    (run,) = run_arms([arm], [seed], out)[arm.name]
    return run / "export"


def run_dir(arm: Arm, seed: int, out: Path) -> Path:
    """Where an arm's run with a seed is kept: elsewhere if its settings change.

    Settings are its words and what stands in the configs that they name; configs that those name in
    turn are not looked at.
    """
    # What it starts from lies in a folder for each seed, which does not make it another arm.
    words = [word.replace(f"seed{seed}", "seed") for word in arm.words(seed)]
    configs = [Path(word) for word in words if word.endswith((".yaml", ".yml"))]
    words += [path.read_text(encoding="utf-8") for path in configs if path.is_file()]
    key = hashlib.sha256("\n".join(words).encode()).hexdigest()[:8]
    return out / "runs" / f"{arm.name}-{key}" / f"seed{seed}"


def seed_words(seed: int, seed_options: Sequence[str] = SEED_OF_DATA_TOO) -> list[str]:
    """Words of the command line that set a run's seed."""
    return [word for option in seed_options for word in (option, str(seed))]


def read_summary(run_dir: Path) -> dict[str, Any]:
    """The run's `summary.json`."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return summary


def end_with_parent() -> None:
    """Let this process end when the one that started it does, even if that is killed.

    A run that nobody waits for would go on for hours, beside the run that takes its place.
    """
    parent = multiprocessing.parent_process()
    assert parent is not None  # a worker of a pool has one

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _train(args: Sequence[str], seed_options: Sequence[str], seed: int, place: Path) -> None:
    place.parent.mkdir(parents=True, exist_ok=True)
    checkpoint = place / "checkpoints" / "last.ckpt"
    resume = ["--ckpt_path", str(checkpoint)] if checkpoint.exists() else []
    words = ["fit", *args, *seed_words(seed, seed_options), "--run_dir", str(place), *resume]
    with place.with_suffix(".log").open("a") as log:
        # The process's own streams, since loggers hold on to them from one run to the next.
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    # Only in the worker: a study that finds all runs finished needs no torch.
    from triptych.cli import main

    main(words)


def _finished(place: Path) -> bool:
    path = place / "summary.json"
    return path.exists() and json.loads(path.read_text())["status"] == "finished"


@contextlib.contextmanager
def _single_threaded() -> Iterator[None]:
    """Let processes started within have one thread each."""
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
    """A class with its settings, as YAML has it."""
    return {"class_path": class_path, "init_args": settings}


def written(
    name: str, content: Settings, folder: Path, start: Mapping[int, Path] | None = None
) -> Arm:
    """Keep an arm's configuration as a file, which runs as it is."""
    content["trainer"] |= {"accelerator": "cpu", "devices": 1}
    content["tracking"] = {"uri": None}  # the study is one run in MLflow, with all arms
    text = yaml.safe_dump(content, sort_keys=False)
    key = hashlib.sha256(text.encode()).hexdigest()[:8]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '_').replace('/', '-')}-{key}.yaml"
    path.write_text(text)
    return Arm(name, ("--config", str(path)), start)
