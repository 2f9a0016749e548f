"""The numbers of a run, from what was measured of it and of the untouched model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

from triptych.metrics.remember.retention import learned_at
from triptych.studies.remember.real_facts.measures import Measured, Plan, base_path, measure_base
from triptych.studies.remember.real_facts.training_record import read_training_record

TAUGHT, HELD_OUT = "taught wordings", "held-out wordings"
TAUGHT_BEFORE, HELD_OUT_BEFORE = "taught wordings, before", "held-out wordings, before"
EARLY, LATE = "held-out wordings, first third", "held-out wordings, last third"
GENERAL_BEFORE, GENERAL = "general questions right, before", "general questions kept"
NEIGHBOURS = "neighbours unchanged (tokens of the untouched reply)"
NEIGHBOURS_SAME = "neighbours with an identical reply"
NEIGHBOURS_RIGHT = "neighbours' right answers kept"
RETAINED = "retained (mean of general and neighbours)"
TEXT, TEXT_RISE = "text (nats/token)", "text, percent"
CHOICES, CHOICES_LOST = "HellaSwag", "HellaSwag, points lost"
ROWS, STEPS, SECONDS = "rows written", "steps per fact", "CPU-seconds a fact"
#: Groups of facts by position in the stream.
NUM_POSITIONS = 6


def numbers_of(measured: Measured, before: Measured, run: Path | None = None) -> dict[str, float]:
    """Return the numbers of a model that was taught.

    Args:
        measured: Measurements of it.
        before: Measurements of the untouched model.
        run: The run that taught it; None: without steps, rows and time.
    """
    held_out = shares(measured["held_out"])
    third = max(1, len(held_out) // 3)
    numbers = {
        TAUGHT: fmean(shares(measured["taught"])),
        HELD_OUT: fmean(held_out),
        TAUGHT_BEFORE: fmean(shares(before["taught"])),
        HELD_OUT_BEFORE: fmean(shares(before["held_out"])),
        EARLY: fmean(held_out[:third]),
        LATE: fmean(held_out[-third:]),
        **retained(measured, before),
    }
    if "text_nats" in measured:
        numbers[TEXT] = measured["text_nats"]
        numbers[TEXT_RISE] = 100 * (measured["text_nats"] / before["text_nats"] - 1)
    if "choices" in measured:
        key = "length_normalized_accuracy"
        numbers[CHOICES] = measured["choices"][key]
        numbers[CHOICES_LOST] = 100 * (before["choices"][key] - measured["choices"][key])
    if run is not None:
        record = read_training_record(run)
        count = measured["num_taught"]
        numbers[ROWS] = float(record["rows_written"])
        numbers[STEPS] = sum(record["steps"]) / count
        numbers[SECONDS] = record["cpu_seconds"] / count
    return numbers


def retained(measured: Measured, before: Measured) -> dict[str, float]:
    """Return which replies of the untouched model have stayed."""
    general = _kept(measured["general"], before["general"])
    unchanged = fmean(measured["neighbour_tokens"])
    return {
        GENERAL_BEFORE: fmean(before["general"]),
        GENERAL: general,
        NEIGHBOURS: unchanged,
        NEIGHBOURS_SAME: fmean(
            float(now == then)
            for now, then in zip(measured["neighbours"], before["neighbours"], strict=True)
        ),
        NEIGHBOURS_RIGHT: _kept(measured["neighbours_right"], before["neighbours_right"]),
        RETAINED: (general + unchanged) / 2,
    }


def kept_items(measured: Measured, before: Measured) -> list[float]:
    """Return for each general question that was right, and each neighbour, how much of it stayed.

    The order is the same for every model that is compared with the same untouched model.
    """
    general = zip(measured["general"], before["general"], strict=True)
    kept = [float(now) for now, then in general if then]
    return [*kept, *measured["neighbour_tokens"]]


def by_position(measured: Measured) -> list[list[float]]:
    """Return (facts taught up to here, recall in held-out wordings) for groups of facts."""
    held_out = shares(measured["held_out"])
    count = min(NUM_POSITIONS, len(held_out))
    ends = [round(len(held_out) * (place + 1) / count) for place in range(count)]
    starts = [0, *ends[:-1]]
    pairs = zip(starts, ends, strict=True)
    return [[float(end), fmean(held_out[start:end])] for start, end in pairs]


def shares(known: Sequence[Sequence[bool]]) -> list[float]:
    """Return for each fact the share of its wordings that are answered."""
    return [fmean(wordings) for wordings in known]


def measured_before(
    folder: Path, plans: Mapping[Any, Plan], cache: Path, workers: int
) -> dict[Any, Measured]:
    """Measure the untouched model; what several plans have in common is measured once.

    Args:
        folder: The model.
        plans: Plans by any name.
        cache: Folder of the results.
        workers: Number of processes.

    Returns:
        For each name, the measurements of its plan, with one taught and one held-out wording of
        each fact.
    """
    parts = {name: _parts(plan) for name, plan in plans.items()}
    different = list(dict.fromkeys(part for several in parts.values() for part in several))
    found = measure_base(folder, different, cache, workers)
    return {
        name: {key: value for part in several for key, value in found[part].items()}
        for name, several in parts.items()
    }


def with_reference(plan: Plan, folder: Path, cache: Path) -> Plan:
    """Return the plan with the untouched model's replies to compare with, which are made once.

    Args:
        plan: What to measure of a model that was taught.
        folder: The untouched model.
        cache: Folder of the results.
    """
    if plan.num_kept == 0:
        return plan
    kept = Plan(num_kept=plan.num_kept, data_dir=plan.data_dir)
    measure_base(folder, [kept], cache, 1)
    return replace(plan, reference=str(base_path(folder, kept, cache)))


def learned_at_equal_retention(retention: float, sweep: Sequence[Mapping[str, float]]) -> float:
    """Return what a method learns where it retains as much, interpolated between its rates.

    The untouched model is one of the points.

    Args:
        retention: Retention of the method that it is compared with.
        sweep: Numbers of the method's runs.
    """
    learned = [0.0, *(numbers[HELD_OUT] for numbers in sweep)]
    kept = [1.0, *(numbers[RETAINED] for numbers in sweep)]
    value = learned_at(learned, kept, min(retention, 1.0)).value
    # None: even the run that learned most retained more.
    return max(learned) if value is None else value


def _kept(now: Sequence[bool], before: Sequence[bool]) -> float:
    """Return the share that is right of what was right; 1 if nothing was."""
    kept = [float(a) for a, b in zip(now, before, strict=True) if b]
    return fmean(kept) if kept else 1.0


def _parts(plan: Plan) -> list[Plan]:
    """Divide a plan into parts that other plans may share."""
    nothing = Plan(data_dir=plan.data_dir)
    parts: list[dict[str, Any]] = []
    if plan.num_facts:
        facts = {name: getattr(plan, name) for name in ("num_facts", "fact_seed", "every")}
        parts.append({**facts, "wordings": "one"})
    if plan.num_kept != 0:
        parts.append({"num_kept": plan.num_kept})
    if plan.num_windows:
        parts.append({"num_windows": plan.num_windows})
    if plan.num_choices:
        parts.append({"num_choices": plan.num_choices})
    return [replace(nothing, **part) for part in parts]
