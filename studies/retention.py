"""Does sparse memory finetuning learn new facts with less forgetting than other methods?

    python -m studies.retention --preset cpu --data_dir FOLDER

A memory model and its dense twin are pretrained on text and OLD facts. Then they learn a stream of
NEW facts of the same relations from statements. They are tested with question forms that never
taught a NEW fact. The answers of NEW facts are names from OLD facts; `full` adds facts with unseen
names as answers, which are harder. Retention is measured on OLD facts and on text.

`cpu` runs the judged arms at learning rates chosen on other facts and seeds (`--split tuning`).
`full` sweeps the rates of every arm and adds the ablations, replay, EWC, KL to the base, and a
stream of 300 facts. Runs with several passes and with many facts per batch are reported as well,
because these settings favour full fine-tuning. Without `--data_dir` the embedded facts and text are
used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.metrics.remember.retention import learned_at
from triptych.studies.arms import SEED_OF_DATA_TOO, device_of, exports, read_summary, run_arms
from triptych.studies.options import FIRST_SEED, seeds_of, study_parser
from triptych.studies.remember.retention.retention_arms import learning, pretraining, world_of
from triptych.studies.remember.retention.retention_figure import draw, early_curves
from triptych.studies.remember.retention.retention_ways import (
    BEFORE,
    EARLY,
    NEW,
    OLD,
    OLD_DROP,
    SPARSE_NAME,
    STATEMENT,
    SWEEPS,
    TEXT,
    TEXT_RISE,
    TF_ONLY,
    numbers_of,
    ways_of,
)
from triptych.studies.results import (
    Check,
    at_least,
    at_most,
    compare_arms,
    summarize,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CLAIM = "sparse memory finetuning learns a stream of facts and forgets less than full or LoRA"
PRESETS = {"smoke": (4, 2), "cpu": (1000, 140), "full": (1000, 140)}


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "retention", PRESETS, ("data_dir", "workers", "split"))
    options = begin_study(parser, args)
    steps, num_new = PRESETS[options.preset]
    world = world_of(options, steps, num_new, options.split)
    seeds = seeds_of(options, FIRST_SEED[options.split])
    out = options.out / options.preset
    bases = run_arms(
        [pretraining(world, base, out / "arms") for base in ("memory", "dense twin")],
        seeds,
        options.out / "bases",
        options.workers,
        SEED_OF_DATA_TOO,
    )
    starts = {base: exports(seeds, dirs) for base, dirs in bases.items()}
    ways = ways_of(options.preset)
    runs = run_arms(
        [learning(world, way, starts[way.base], out / "arms") for way in ways],
        seeds,
        out,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    numbers = {name: [numbers_of(run) for run in dirs] for name, dirs in runs.items()}
    early = early_curves(runs)
    draw(numbers, early, options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        _tests(numbers),
        _checks(numbers),
        device=device_of(*runs.values()),
        split=options.split,
        seeds=seeds,
        early_curves=early,
        seconds_of_pretraining={base: _seconds(dirs) for base, dirs in bases.items()},
        seconds_of_learning={name: _seconds(dirs) for name, dirs in runs.items()},
    )


def _seconds(runs: Sequence[Path]) -> list[float]:
    return [read_summary(run)["wall_seconds"] for run in runs]


def _median(numbers: Sequence[dict[str, float]], key: str) -> float:
    return float(np.median([n[key] for n in numbers]))


def _learned_at(retained: float, sweep: Sequence[dict[str, float]]) -> float:
    """Return what a method learns at an equal loss of OLD, interpolated between its rates.

    The untouched model is one of the points, since a method may also change almost nothing.
    """
    learned = [sweep[0][BEFORE], *(n[NEW] for n in sweep)]
    kept = [0.0, *(-n[OLD_DROP] for n in sweep)]
    # No method counts as keeping more than the untouched model, even if its OLD has risen.
    value = learned_at(learned, kept, min(retained, 0.0)).value
    # None: even the run that learned most kept more than `retained`.
    return max(n[NEW] for n in sweep) if value is None else value


def _tests(numbers: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    if TF_ONLY not in numbers:
        return []
    return [compare_arms(numbers, key, SPARSE_NAME, TF_ONLY) for key in (NEW, STATEMENT, OLD, TEXT)]


def _checks(numbers: dict[str, list[dict[str, float]]]) -> dict[str, Check]:
    sparse = numbers[SPARSE_NAME]
    checks = {
        "sparse: NEW in questions, median": at_least(_median(sparse, NEW), 0.68),
        "sparse: NEW in statements, median": at_least(_median(sparse, STATEMENT), 0.90),
        "sparse: OLD lost in points, median": at_most(_median(sparse, OLD_DROP), 3.5),
        "sparse: text NLL risen in percent, median": at_most(_median(sparse, TEXT_RISE), 1.0),
        "sparse: first 20 facts at the end, median": at_least(_median(sparse, EARLY), 0.65),
    }
    for kind, rates in SWEEPS.items():
        sweep = [numbers[name] for name in rates if name in numbers]
        advantages = [
            own[NEW] - _learned_at(-own[OLD_DROP], [per_seed[seed] for per_seed in sweep])
            for seed, own in enumerate(sparse)
        ]
        name = f"sparse: NEW in questions, more than {kind} at the same OLD, median"
        checks[name] = at_least(float(np.median(advantages)), 0.25)
    for test in _tests(numbers):
        if test["name"].startswith(f"{OLD},") and test["p"] is not None:
            checks["TF-IDF against TF only on OLD, p"] = at_most(test["p"], 0.05)
    return checks


if __name__ == "__main__":
    main()
