"""Many facts in batches of several visits at once, against fewer facts one by one."""

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from statistics import median
from typing import Any

from triptych.studies.arms import SEED_OF_DATA_TOO, device_of, run_arms
from triptych.studies.remember.real_facts.measures import MeasureRun, Plan
from triptych.studies.remember.real_facts.real_facts_arms import (
    Bases,
    Way,
    fact_files,
    teaching,
)
from triptych.studies.remember.real_facts.real_facts_numbers import (
    HELD_OUT,
    RETAINED,
    SECONDS,
    TEXT_RISE,
    by_position,
    measured_before,
    numbers_of,
    with_reference,
)
from triptych.studies.remember.real_facts.real_facts_settings import (
    BATCH_DATA,
    BATCH_SPARSE,
    Sizes,
)
from triptych.studies.results import at_least, at_most, summarize, write_results

CLAIM = "facts in batches are learned and forgotten as facts one by one"


def run_batched(
    options: argparse.Namespace, bases: Bases, sizes: Sizes, seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    """Teach facts one by one and in batches, and write the results.

    Of many facts, as many are asked as are taught one by one, spread over the stream.

    Args:
        options: Parsed options of the study.
        bases: The models to teach.
        sizes: Sizes of the study.
        seeds: Seeds.
        out: Folder that stores the runs.
    """
    few, many = sizes.num_one_by_one, sizes.num_batched
    single, batched = f"one by one, {few:,}", f"in batches, {few:,}"
    crowded = f"in batches, {many:,}"
    ways = [
        (Way(single, sparse={}), few),
        (Way(batched, sparse=BATCH_SPARSE, data=BATCH_DATA), few),
        (Way(crowded, sparse=BATCH_SPARSE, data=BATCH_DATA), many),
    ]
    numbers, positions, runs = {}, {}, []
    for way, count in ways:
        plan = Plan(
            num_facts=count,
            every=max(1, count // few),
            num_kept=sizes.num_kept,
            num_windows=sizes.num_windows,
            num_choices=sizes.num_choices_compared,
            data_dir=options.data_dir,
        )
        plan = with_reference(plan, bases.plain, out / "untouched")
        then = MeasureRun(plan, options.keep_exports)
        start = dict.fromkeys(seeds, bases.memory)
        facts = fact_files(count, seeds, out / "facts")
        arm = teaching(way, start, facts, bases.is_small, out / "arms")
        dirs = run_arms([arm], seeds, out, options.workers, SEED_OF_DATA_TOO, then)[arm.name]
        plans = {seed: replace(plan, fact_seed=seed) for seed in seeds}
        before = measured_before(bases.plain, plans, out / "untouched", options.workers)
        pairs = [(then.read(run), before[seed], run) for seed, run in zip(seeds, dirs, strict=True)]
        numbers[way.name] = [numbers_of(*pair) for pair in pairs]
        positions[way.name] = [by_position(measured) for measured, _, _ in pairs]
        runs += dirs

    def middle(name: str, key: str) -> float:
        return median(n[key] for n in numbers[name])

    return write_results(
        options.out / "batched",
        CLAIM,
        options.preset,
        summarize(numbers),
        [],
        {
            f"{crowded}: {HELD_OUT} against one by one, median": at_least(
                middle(crowded, HELD_OUT), middle(single, HELD_OUT)
            ),
            f"{crowded}: {RETAINED} against one by one, median": at_least(
                middle(crowded, RETAINED), middle(single, RETAINED)
            ),
            f"{crowded}: {TEXT_RISE} against .5, median": at_most(middle(crowded, TEXT_RISE), 0.5),
            f"{crowded}: {SECONDS} against 3, median": at_most(middle(crowded, SECONDS), 3.0),
        },
        device=device_of(runs),
        seeds=list(seeds),
        sizes=asdict(sizes),
        batches={"data": BATCH_DATA, "sparse": BATCH_SPARSE},
        recall_by_position=positions,
    )
