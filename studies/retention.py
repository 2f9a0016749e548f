"""Does sparse memory finetuning learn new facts with less forgetting than other finetuning?

    python -m studies.retention --preset cpu --data_dir FOLDER

A memory model and its dense twin are pretrained on text and OLD facts. Then they learn NEW facts of
the same relations, one after another, from statements, and are asked in questions of forms that
never taught a NEW fact. The answers of NEW facts are names that OLD facts have taught (`full` adds
facts whose answers are new names as well, which is harder). What they keep is measured on OLD facts
and on text.

`cpu` runs the arms that are judged, at learning rates chosen beforehand on other facts and seeds
(`--split tuning`); `full` sweeps the rates of every arm and adds the ablations, replay, EWC, KL to
the base, and a stream of 300 facts. Several passes over the facts and many facts a batch are
reported beside the single pass, since there full finetuning has the better case. Without
`--data_dir` the embedded facts and text are used.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from triptych.metrics.remember.retention import learned_at
from triptych.studies.arms import SEED_OF_DATA_TOO, read_summary, run_arms
from triptych.studies.options import FIRST_SEED, seeds_of, study_parser
from triptych.studies.remember.retention.retention_arms import learning, pretraining, world_of
from triptych.studies.remember.retention.retention_figure import draw
from triptych.studies.remember.retention.retention_ways import (
    BEFORE,
    EARLY,
    JUDGED,
    NEW,
    OLD,
    OLD_DROP,
    STATEMENT,
    TEXT,
    TEXT_RISE,
    numbers_of,
    ways_of,
)
from triptych.studies.results import at_least, at_most, mean_interval, paired_test, write_results

CLAIM = "sparse memory finetuning learns a stream of facts and forgets less than full or LoRA"
PRESETS = {"smoke": (4, 2), "cpu": (1000, 140), "full": (1000, 140)}


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study; returns what `results.json` holds."""
    takes = ("data_dir", "workers", "split")
    parser = study_parser(__doc__, "retention", PRESETS, takes)
    options = parser.parse_args(args)
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
    starts = {
        base: {seed: run / "export" for seed, run in zip(seeds, runs, strict=True)}
        for base, runs in bases.items()
    }
    ways = ways_of(options.preset)
    runs = run_arms(
        [learning(world, way, starts[way.base], out / "arms") for way in ways],
        seeds,
        out,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    numbers = {name: [numbers_of(run) for run in dirs] for name, dirs in runs.items()}
    draw(numbers, runs, options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        {
            name: {key: mean_interval([n[key] for n in per_seed]) for key in per_seed[0]}
            for name, per_seed in numbers.items()
        },
        _tests(numbers),
        _checks(numbers),
        split=options.split,
        seeds=seeds,
        seconds_of_pretraining={base: _seconds(dirs) for base, dirs in bases.items()},
        seconds_of_learning={name: _seconds(dirs) for name, dirs in runs.items()},
    )


def _seconds(runs: Sequence[Path]) -> list[float]:
    return [read_summary(run)["wall_seconds"] for run in runs]


def _median(numbers: Sequence[dict[str, float]], key: str) -> float:
    return float(np.median([n[key] for n in numbers]))


def _learned_at(retained: float, sweep: Sequence[dict[str, float]]) -> float:
    """What a method learns where it loses as little of OLD: over its rates, joined by lines.

    The untouched model is one of the points, so that a method may also do next to nothing.
    """
    learned = [sweep[0][BEFORE], *(n[NEW] for n in sweep)]
    kept = [0.0, *(-n[OLD_DROP] for n in sweep)]
    # Nobody keeps more than the untouched model in this comparison, also where OLD has risen.
    value = learned_at(learned, kept, min(retained, 0.0)).value
    # Where even the run that learned most kept more than asked for, that is what it learns.
    return max(n[NEW] for n in sweep) if value is None else value


def _tests(numbers: dict[str, list[dict[str, float]]]) -> list[dict[str, Any]]:
    sparse, rival = JUDGED["sparse"], JUDGED["tf only"]
    return [
        paired_test(
            f"{key}, {sparse} - {rival}",
            [n[key] for n in numbers[sparse]],
            [n[key] for n in numbers[rival]],
        )
        for key in (NEW, STATEMENT, OLD, TEXT)
        if rival in numbers
    ]


def _checks(numbers: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    sparse = numbers[JUDGED["sparse"]]
    checks = {
        "sparse: NEW in questions, median": at_least(_median(sparse, NEW), 0.68),
        "sparse: NEW in statements, median": at_least(_median(sparse, STATEMENT), 0.90),
        "sparse: OLD lost in points, median": at_most(_median(sparse, OLD_DROP), 3.5),
        "sparse: text NLL risen in percent, median": at_most(_median(sparse, TEXT_RISE), 1.0),
        "sparse: first 20 facts at the end, median": at_least(_median(sparse, EARLY), 0.65),
    }
    for kind in ("full", "LoRA"):
        sweep = [numbers[name] for name in JUDGED[kind] if name in numbers]
        advantages = [
            own[NEW] - _learned_at(-own[OLD_DROP], [rates[seed] for rates in sweep])
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
