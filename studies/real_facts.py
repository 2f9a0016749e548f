"""Can a real chat model be taught invented facts one after another, and keep what it knows?

    python -m studies.real_facts --preset smollm2 --data_dir FOLDER

SmolLM2-135M-Instruct gets a memory and its background statistics, once. It is then taught 60
invented facts of six relations in one pass, one after another, in its own chat template: each by
four to six questions, answered by a statement. Three further wordings of each question are never
taught. Asked greedily before and after: all wordings, general questions that the untouched model
answers, neighbours (real things of the same relations), running text, HellaSwag.

On the first 24 facts it compares with other choices of slots (KL, TF only) and with full finetuning
and LoRA of the plain model, whose rates are chosen on other facts. Further parts instead of the
arms: `--days 3` teaches over three sessions and takes a fact of each back; `--batched` teaches
several facts in a batch. Finished runs and measurements are not repeated. Without `--data_dir`,
embedded text and statements stand in for WikiText and HellaSwag.
"""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, device_of, read_summary, run_arms
from triptych.studies.options import FIRST_SEED, seeds_of, study_parser
from triptych.studies.remember.real_facts.batched import run_batched
from triptych.studies.remember.real_facts.days import run_days
from triptych.studies.remember.real_facts.measures import Measured, MeasureRun, Plan
from triptych.studies.remember.real_facts.real_facts_arms import (
    Bases,
    Way,
    bases_of,
    fact_files,
    sparse,
    teaching,
)
from triptych.studies.remember.real_facts.real_facts_figure import draw
from triptych.studies.remember.real_facts.real_facts_numbers import (
    CHOICES_LOST,
    GENERAL,
    HELD_OUT,
    NEIGHBOURS,
    RETAINED,
    TAUGHT,
    TEXT_RISE,
    by_position,
    kept_items,
    learned_at_equal_retention,
    measured_before,
    numbers_of,
    with_reference,
)
from triptych.studies.remember.real_facts.real_facts_settings import PRESETS, Sizes
from triptych.studies.remember.real_facts.tuning import WAYS, Tuning, tune
from triptych.studies.results import (
    Check,
    at_least,
    at_most,
    paired_test,
    summarize,
    write_results,
)
from triptych.studies.study_tracking import begin_study

CLAIM = "a real chat model learns a stream of invented facts and keeps what it knows"
#: Option -> arm. All but the first learn the first facts only.
ARMS = {
    "sparse": "sparse, all facts",
    "first": "sparse",
    "kl": "KL",
    "tf": "TF only",
    "full": "full",
    "lora": "LoRA",
}
MAIN, FIRST, TF_ONLY = ARMS["sparse"], ARMS["first"], ARMS["tf"]
DENSE = (ARMS["full"], ARMS["lora"])
NumbersOf = dict[str, list[dict[str, float]]]


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study, or the part that an option names; return the content of `results.json`."""
    options = begin_study(_parser(), args)
    sizes = sizes_of(options)
    seeds = seeds_of(options, FIRST_SEED[options.split])
    out = options.out / options.preset
    bases = bases_of(options.preset, out)
    if options.days is not None:
        return run_days(options, bases, sizes, seeds, out)
    if options.batched:
        return run_batched(options, bases, sizes, seeds, out)
    return run_arms_of(options, bases, sizes, seeds, out)


def run_arms_of(
    options: argparse.Namespace, bases: Bases, sizes: Sizes, seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    """Run the chosen arms, measure them and write the results."""
    chosen = [ARMS[name] for name in dict.fromkeys(options.arms)]
    untouched = out / "untouched"
    plans = {
        name: with_reference(plan, bases.plain, untouched)
        for name, plan in plans_of(sizes, options.data_dir).items()
    }
    tuned = dataclasses.replace(plans[FIRST], num_facts=sizes.num_tuning, num_choices=0)
    runs: dict[str, list[Path]] = {}
    if MAIN in chosen:  # first: its results are the study's
        runs |= _run([sparse(MAIN)], sizes.num_facts, plans[MAIN], options, bases, seeds, out)
    dense = [name for name in DENSE if name in chosen]
    tuning = tune(dense, bases, sizes, tuned, out, options.workers)
    ways = [way for way in ways_of(tuning) if way.name in chosen]
    runs |= _run(ways, sizes.num_first, plans[FIRST], options, bases, seeds, out)

    kinds = [*([MAIN] if MAIN in runs else []), *([FIRST] if ways else [])]
    asked = {
        (kind, seed): dataclasses.replace(plans[kind], fact_seed=seed)
        for kind in kinds
        for seed in seeds
    }
    before = measured_before(bases.plain, asked, untouched, options.workers)
    numbers: NumbersOf = {}
    items: dict[str, list[list[float]]] = {}
    positions: dict[str, list[list[list[float]]]] = {}
    for name, dirs in runs.items():
        kind = MAIN if name == MAIN else FIRST
        then = MeasureRun(plans[kind])
        pairs: list[tuple[Measured, Measured, Path]] = [
            (then.read(run), before[kind, seed], run) for seed, run in zip(seeds, dirs, strict=True)
        ]
        numbers[name] = [numbers_of(*pair) for pair in pairs]
        items[name] = [kept_items(now, earlier) for now, earlier, _ in pairs]
        positions[name] = [by_position(now) for now, _, _ in pairs]
    draw(numbers, tuning.trade_off, positions, options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        tests_of(items, numbers),
        checks_of(numbers, items),
        device=device_of(*runs.values()),
        seeds=list(seeds),
        split=options.split,
        sizes=dataclasses.asdict(sizes),
        data="embedded" if options.data_dir is None else "WikiText-2, HellaSwag",
        seconds_of_inserting_the_memory=read_summary(bases.memory_run)["wall_seconds"],
        chosen_rates=tuning.rates,
        trade_off_on_the_tuning_seed=tuning.trade_off,
        recall_by_position=positions,
    )


def _run(
    ways: Sequence[Way],
    count: int,
    plan: Plan,
    options: argparse.Namespace,
    bases: Bases,
    seeds: Sequence[int],
    out: Path,
) -> dict[str, list[Path]]:
    """Teach the first facts of each seed in some ways, and measure each run."""
    if not ways:
        return {}
    facts = fact_files(count, seeds, out / "facts")
    arms: list[Arm] = [
        teaching(
            way,
            dict.fromkeys(seeds, bases.plain if way.sparse is None else bases.memory),
            facts,
            bases.is_small,
            out / "arms",
        )
        for way in ways
    ]
    then = MeasureRun(plan, keep_export=options.keep_exports)
    return run_arms(arms, seeds, out, options.workers, SEED_OF_DATA_TOO, then)


def ways_of(tuning: Tuning) -> list[Way]:
    """Return the methods that are compared on the first facts."""
    ways = [sparse(FIRST), sparse(ARMS["kl"], ranking="kl"), sparse(TF_ONLY, ranking="tf")]
    return [*ways, *(WAYS[name][0](name, rate) for name, rate in tuning.rates.items())]


def plans_of(sizes: Sizes, data_dir: str | None) -> dict[str, Plan]:
    """Return what is measured of the main arm, and of those that learn the first facts."""
    main_plan = Plan(
        num_facts=sizes.num_facts,
        num_kept=sizes.num_kept,
        num_windows=sizes.num_windows,
        num_choices=sizes.num_choices,
        data_dir=data_dir,
    )
    first = dataclasses.replace(
        main_plan, num_facts=sizes.num_first, num_choices=sizes.num_choices_compared
    )
    return {MAIN: main_plan, FIRST: first}


def sizes_of(options: argparse.Namespace) -> Sizes:
    """Return the sizes of a preset with the options' changes."""
    sizes = PRESETS[options.preset]
    if options.facts is not None:
        sizes = sizes.with_facts(options.facts)
    return sizes.quick() if options.quick else sizes


def tests_of(items: dict[str, list[list[float]]], numbers: NumbersOf) -> list[dict[str, Any]]:
    """Compare TF-IDF with TF only on what is retained.

    Questions are the units of the first test, each the mean over the seeds; seeds of the others.
    """
    if not {FIRST, TF_ONLY} <= items.keys():
        return []
    by_question = (
        [sum(kept) for kept in zip(*items[name], strict=True)] for name in (FIRST, TF_ONLY)
    )
    tests = [paired_test(RETAINED_TEST, *by_question)]
    for key in (RETAINED, TEXT_RISE, HELD_OUT):
        values = ([n[key] for n in numbers[name]] for name in (FIRST, TF_ONLY))
        tests.append(paired_test(f"{key}, {FIRST} - {TF_ONLY}, by seed", *values))
    return tests


RETAINED_TEST = f"replies retained, {FIRST} - {TF_ONLY}, by question"


def checks_of(numbers: NumbersOf, items: dict[str, list[list[float]]]) -> dict[str, Check]:
    """Compare medians over seeds with their bounds, for the arms that have run."""
    checks: dict[str, Check] = {}
    if MAIN in numbers:
        for key, bound, compare in (
            (HELD_OUT, 0.65, at_least),
            (TAUGHT, 0.85, at_least),
            (GENERAL, 0.95, at_least),
            (NEIGHBOURS, 0.90, at_least),
            (TEXT_RISE, 0.5, at_most),
            (CHOICES_LOST, 1.5, at_most),
        ):
            value = median(n[key] for n in numbers[MAIN])
            checks[f"{MAIN}: {key}, median"] = compare(value, bound)
    if FIRST in numbers:
        for name in (name for name in DENSE if name in numbers):
            pairs = zip(numbers[FIRST], numbers[name], strict=True)
            advantage = median(
                own[HELD_OUT] - learned_at_equal_retention(own[RETAINED], [other])
                for own, other in pairs
            )
            text = f"{FIRST}: {HELD_OUT}, more than {name} at the same retention, median"
            checks[text] = at_least(advantage, 0.25)
    for test in tests_of(items, numbers):
        if test["name"] == RETAINED_TEST and test["p"] is not None:
            better = test["statistic"] > 0
            checks["TF-IDF over TF only on retention, p"] = at_most(
                test["p"] if better else 1.0, 0.05
            )
    return checks


def _parser() -> argparse.ArgumentParser:
    parser = study_parser(__doc__, "real_facts", PRESETS, ("data_dir", "workers", "split"))
    parser.add_argument(
        "--arms", nargs="+", choices=ARMS, default=list(ARMS), help="arms to run; default: all"
    )
    parser.add_argument("--facts", type=int, help="facts to teach; default: that of the preset")
    parser.add_argument("--quick", action="store_true", help="less text, and 50 rows of HellaSwag")
    parser.add_argument("--keep_exports", action="store_true", help="keep the taught models")
    part = parser.add_mutually_exclusive_group()
    part.add_argument("--days", type=int, help="instead: teach over this many sessions")
    part.add_argument("--batched", action="store_true", help="instead: many facts in batches")
    return parser


if __name__ == "__main__":
    main()
