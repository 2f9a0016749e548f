"""The rates of full finetuning and LoRA, chosen on a seed that is not reported."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych.studies.arms import SEED_OF_DATA_TOO, run_arms
from triptych.studies.remember.real_facts.measures import MeasureRun, Plan
from triptych.studies.remember.real_facts.real_facts_arms import (
    Bases,
    Way,
    fact_files,
    full,
    lora,
    sparse,
    teaching,
)
from triptych.studies.remember.real_facts.real_facts_numbers import (
    HELD_OUT,
    RETAINED,
    measured_before,
    numbers_of,
)
from triptych.studies.remember.real_facts.real_facts_settings import (
    FULL_RATES,
    LORA_RATES,
    RETAINED_TOLERANCE,
    TUNING_SEED,
    Sizes,
)

Numbers = dict[str, float]
SPARSE_TUNED = "tuning: sparse"
WAYS: dict[str, tuple[Callable[[str, float], Way], Sequence[float]]] = {
    "full": (full, FULL_RATES),
    "LoRA": (lora, LORA_RATES),
}


@dataclass(frozen=True)
class Tuning:
    """The outcome of tuning.

    Args:
        rates: The chosen rate of each method.
        trade_off: Numbers of every run, by method and rate; the sparse run too.
    """

    rates: dict[str, float]
    trade_off: dict[str, Numbers]


def tune(
    methods: Sequence[str], bases: Bases, sizes: Sizes, plan: Plan, out: Path, workers: int
) -> Tuning:
    """Try the rates of some methods on facts that are not reported.

    Args:
        methods: Names in `WAYS`.
        bases: The models to teach.
        sizes: Sizes of the study.
        plan: What to measure.
        out: Folder that stores the runs.
        workers: Number of processes.
    """
    if sizes.num_rates == 1:  # nothing to choose from
        return Tuning({method: WAYS[method][1][-1] for method in methods}, {})
    if not methods:
        return Tuning({}, {})
    seeds = [TUNING_SEED]
    facts = fact_files(sizes.num_tuning, seeds, out / "facts")
    tried = {
        f"tuning: {method} {rate:g}": (method, rate)
        for method in methods
        for rate in WAYS[method][1][-sizes.num_rates :]
    }
    ways = [sparse(SPARSE_TUNED)]
    ways += [WAYS[method][0](name, rate) for name, (method, rate) in tried.items()]
    arms = [
        teaching(
            way,
            dict.fromkeys(seeds, bases.plain if way.sparse is None else bases.memory),
            facts,
            bases.is_small,
            out / "arms",
        )
        for way in ways
    ]
    then = MeasureRun(plan)
    runs = run_arms(arms, seeds, out, workers, SEED_OF_DATA_TOO, then)
    asked = {TUNING_SEED: Plan(**{**vars(plan), "fact_seed": TUNING_SEED})}
    before = measured_before(bases.plain, asked, out / "untouched", workers)[TUNING_SEED]
    numbers = {name: numbers_of(then.read(run), before, run) for name, (run,) in runs.items()}
    rates = {}
    for method in methods:
        swept = {rate: numbers[name] for name, (other, rate) in tried.items() if other == method}
        rates[method] = chosen_rate(swept, numbers[SPARSE_TUNED][RETAINED])
    return Tuning(rates, numbers)


def chosen_rate(swept: Mapping[float, Numbers], retention: float) -> float:
    """Choose the rate that learns most among those that retain as much as another method.

    If none does, the one that retains most is chosen.

    Args:
        swept: Numbers of each rate.
        retention: Retention of the other method.

    >>> swept = {1e-5: {HELD_OUT: 0.1, RETAINED: 1.0}, 1e-4: {HELD_OUT: 0.4, RETAINED: 0.5}}
    >>> chosen_rate(swept, 0.95), chosen_rate(swept, 0.5)
    (1e-05, 0.0001)
    """
    keeping = {
        rate: numbers
        for rate, numbers in swept.items()
        if numbers[RETAINED] >= retention - RETAINED_TOLERANCE
    }
    if keeping:
        return max(keeping, key=lambda rate: keeping[rate][HELD_OUT])
    return max(swept, key=lambda rate: swept[rate][RETAINED])
