"""Facts over several sessions, each from a copy of the last one's export; then some are taken back.

session 1 -> export -> copy -> session 2 -> ... -> one fact of each session unlearned
"""

import argparse
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

import torch

from triptych.callbacks.atomic_file import atomic_folder
from triptych.callbacks.remember.ledger.ledger_folder import ledger_folder_of
from triptych.cli import main as run_train
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.row_changes import same_bits
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.studies.arms import SEED_OF_DATA_TOO, Afterwards, device_of, run_arms
from triptych.studies.remember.real_facts.invented_facts import invented_facts, write_facts
from triptych.studies.remember.real_facts.measures import (
    Measured,
    Plan,
    measure_all,
    read_measured,
)
from triptych.studies.remember.real_facts.real_facts_arms import Bases, Way, teaching
from triptych.studies.remember.real_facts.real_facts_numbers import (
    measured_before,
    retained,
    shares,
    with_reference,
)
from triptych.studies.remember.real_facts.real_facts_settings import Sizes
from triptych.studies.results import at_most, summarize, write_results

CLAIM = "facts are taught over several sessions, and a fact of each is taken back"
WAYS = ("keep", "subtract")
BACK_BEFORE, BACK_BASE = "facts taken back, recall before", "facts taken back, recall of the base"
BACK = "facts taken back, recall after ({})"
OTHERS = "other facts, points lost ({})"
ELSEWHERE = "rows changed that the facts never wrote ({})"
UNDONE = "rows that the facts alone wrote, not undone to the bit ({})"
OF_DAY = "facts of session {}, recall at the end"
Tables = list[torch.Tensor]


class MoveExport(Afterwards):
    """Copies the export of a run to a folder of its own and removes the original.

    What a session leaves beside the export must not matter for the next one.

    Args:
        folder: Folder of the copies.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def copy(self, run: Path) -> Path:
        """Return the copy of a run's export."""
        return self.folder / run.parent.name / run.name

    def is_done(self, run: Path) -> bool:
        """Return whether the copy is there."""
        return self.copy(run).is_dir()

    def is_possible(self, run: Path) -> bool:
        """Return whether the copy or the original is there."""
        return self.is_done(run) or (run / "export").is_dir()

    def __call__(self, run: Path) -> None:
        """Copy the export."""
        if not self.is_done(run):
            with atomic_folder(self.copy(run)) as folder:
                shutil.copytree(run / "export", folder, dirs_exist_ok=True)
        for name in ("export", "ledger"):
            shutil.rmtree(run / name, ignore_errors=True)


def run_days(
    options: argparse.Namespace, bases: Bases, sizes: Sizes, seeds: Sequence[int], out: Path
) -> dict[str, Any]:
    """Run the sessions of each seed, take a fact of each back, and write the results.

    Args:
        options: Parsed options of the study.
        bases: The models to teach.
        sizes: Sizes of the study.
        seeds: Seeds.
        out: Folder that stores the runs.
    """
    models, runs = _taught(options, bases, sizes, seeds, out)
    count = options.days * sizes.facts_a_day
    plans = {
        seed: with_reference(
            Plan(count, seed, num_kept=sizes.num_kept, data_dir=options.data_dir),
            bases.plain,
            out / "untouched",
        )
        for seed in seeds
    }
    before = measured_before(bases.plain, plans, out / "untouched", options.workers)
    jobs: dict[Path, tuple[Path, Plan]] = {}
    places: dict[tuple[str, int], tuple[Path, Path]] = {}
    for seed, model in models.items():
        found = {"taught": model}
        found |= {way: _unlearned(model, _taken_back(plans[seed], sizes), way) for way in WAYS}
        for name, folder in found.items():
            measured = model.parent / f"{model.name}-{name}-{plans[seed].key}.json"
            places[name, seed] = folder, measured
            jobs[measured] = folder, plans[seed]
    measure_all(jobs, options.workers)
    numbers = [
        _numbers(
            {name: places[name, seed] for name in ("taught", *WAYS)},
            before[seed],
            _taken_back(plans[seed], sizes),
            bases.memory,
            plans[seed],
            options.days,
        )
        for seed in seeds
    ]
    bounds = {BACK: "more than the base", OTHERS: "", ELSEWHERE: "", UNDONE: ""}
    checks = {}
    for way in WAYS:
        for text in bounds:
            values = [n[text.format(way)] - (n[BACK_BASE] if text == BACK else 0) for n in numbers]
            more = ", more than the base" if text == BACK else ""
            checks[f"{text.format(way)}{more}, median"] = at_most(median(values), 0.0)
    return write_results(
        options.out / "days",
        CLAIM,
        options.preset,
        summarize({"sessions": numbers}),
        [],
        checks,
        device=device_of(runs),
        seeds=list(seeds),
        sessions=options.days,
        facts_a_session=sizes.facts_a_day,
    )


def _taught(
    options: argparse.Namespace, bases: Bases, sizes: Sizes, seeds: Sequence[int], out: Path
) -> tuple[dict[int, Path], list[Path]]:
    """Teach session after session; return the copies of the last exports, and all runs."""
    facts_a_day, then = sizes.facts_a_day, MoveExport(out / "days")
    models: Mapping[int, Path] = dict.fromkeys(seeds, bases.memory)
    runs: list[Path] = []
    for day in range(options.days):
        files = {}
        for seed in seeds:
            facts = invented_facts(options.days * facts_a_day, seed)
            name = f"session{day + 1}-seed{seed}"
            own = facts[day * facts_a_day : (day + 1) * facts_a_day]
            files[seed] = write_facts(own, out / "facts", name)
        way = Way(f"session {day + 1}", sparse={}, ledger=True)
        arm = teaching(way, models, files, bases.is_small, out / "arms")
        found = run_arms([arm], seeds, out, options.workers, SEED_OF_DATA_TOO, then)[arm.name]
        models = {seed: then.copy(run) for seed, run in zip(seeds, found, strict=True)}
        runs += found
    return dict(models), runs


def _taken_back(plan: Plan, sizes: Sizes) -> list[int]:
    """Return the places of the facts to take back: the middle one of each session."""
    return list(range(sizes.facts_a_day // 2, plan.num_facts, sizes.facts_a_day))


def _ledger_of(model: Path) -> Ledger:
    folder = ledger_folder_of(model)
    assert folder is not None, "the sessions keep a ledger"
    return Ledger.open(folder)


def _unlearned(model: Path, places: Sequence[int], way: str) -> Path:
    """Take facts back with the command for users."""
    out = model.parent / f"{model.name}-{way}"
    if not out.is_dir():
        ledger = _ledger_of(model)
        facts = [ledger.entries[place].facts[0] for place in places]
        words = ["ledger", "unlearn", *facts, "--model", str(model), "--out", str(out)]
        run_train([*words, "--shared_rows", way])
    return out


def _numbers(
    found: Mapping[str, tuple[Path, Path]],
    before: Measured,
    places: Sequence[int],
    base: Path,
    plan: Plan,
    num_days: int,
) -> dict[str, float]:
    """Return the numbers of one seed.

    Args:
        found: Model and measurements before and after facts were taken back, by name.
        before: Measurements of the untouched model.
        places: Places of the facts that were taken back.
        base: Export with the memory before any session.
        plan: What was measured.
        num_days: Number of sessions.
    """
    recall = {name: _recall(read_measured(path)) for name, (_, path) in found.items()}
    others = [place for place in range(plan.num_facts) if place not in places]
    taught = recall["taught"]
    numbers = {
        BACK_BEFORE: fmean(taught[place] for place in places),
        BACK_BASE: fmean(_recall(before)[place] for place in places),
    }
    size = plan.num_facts // num_days
    for day in range(num_days):
        numbers[OF_DAY.format(day + 1)] = fmean(taught[day * size : (day + 1) * size])
    model = found["taught"][0]
    ledger = _ledger_of(model)
    ids = [ledger.entries[place].facts[0] for place in places]
    tables = _tables(model)
    for way in WAYS:
        after = recall[way]
        numbers[BACK.format(way)] = fmean(after[place] for place in places)
        lost = [taught[place] - after[place] for place in others]
        numbers[OTHERS.format(way)] = 100 * fmean(lost) if lost else 0.0
        changed, left = rows_of_unlearning(
            tables, _tables(found[way][0]), _tables(base), ledger, ids
        )
        numbers[ELSEWHERE.format(way)] = float(changed)
        numbers[UNDONE.format(way)] = float(left)
    kept = retained(read_measured(found["taught"][1]), before)
    return numbers | {f"{name}, at the end": value for name, value in kept.items()}


def rows_of_unlearning(
    taught: Tables, after: Tables, base: Tables, ledger: Ledger, facts: Sequence[str]
) -> tuple[int, int]:
    """Count rows that unlearning should have left alone, and rows that it should have undone.

    Args:
        taught: Value tables of the model that knows all facts.
        after: Those of the model without some.
        base: Those of the model that knew none.
        ledger: The ledger of the first.
        facts: Ids of the facts that were taken back.

    Returns:
        The number of rows that differ from `taught` though the facts never wrote them, and of rows
        that the facts alone wrote and that differ from `base`.
    """
    numbers = {number for fact in facts for number in ledger.entries_of(fact)}
    elsewhere = left = 0
    for table, (old, new, first) in enumerate(zip(taught, after, base, strict=True)):
        own, others = (
            torch.zeros(len(old), dtype=torch.bool),
            torch.zeros(len(old), dtype=torch.bool),
        )
        for number, entry in enumerate(ledger):
            (own if number in numbers else others)[entry.tables[table].rows_U] = True
        elsewhere += int((~same_bits(old, new) & ~own).sum())
        left += int((~same_bits(first, new) & own & ~others).sum())
    return elsewhere, left


def _recall(measured: Measured) -> list[float]:
    """Return for each fact the share of all its wordings that are answered."""
    kinds = zip(measured["taught"], measured["held_out"], strict=True)
    return shares([[*taught, *held_out] for taught, held_out in kinds])


def _tables(folder: Path) -> Tables:
    return [table.weight.detach() for table in value_tables(load_memory_lm(folder))]
