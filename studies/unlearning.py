"""Can one fact of many be removed from a model, and what does this cost the others?

    python -m studies.unlearning --preset cpu --data_dir FOLDER

A memory model pretrained on text and OLD facts learns a stream of 50 NEW facts with
`SparseMemoryFinetuning` and `SlotLedger`. Then `train.py ledger unlearn` removes the 20th fact in
two ways. Rows that later facts also wrote keep their content (`keep`) or lose the share of this
fact (`subtract`). Recall of all facts is measured before and after, in questions and in statements.

The pretrained models are those of `retention`; they are reused if that study ran before.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from triptych.cli import main as run_train
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.row_changes import same_bits
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.studies.arms import SEED_OF_DATA_TOO, device_of, probe, run_arms, seed_words
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.remember.asked_again import ask
from triptych.studies.remember.retention.retention_arms import (
    SPARSE,
    Way,
    learning,
    pretrained_memory,
    world_of,
)
from triptych.studies.results import at_most, summarize, write_results
from triptych.studies.study_tracking import begin_study

CLAIM = "a fact of many can be unlearned, and the others stay known"
PRESETS = {"smoke": (4, 3, 2), "cpu": (1000, 50, 20), "full": (1000, 50, 20)}
WAYS = ("keep", "subtract")
Tables = list[torch.Tensor]
OTHERS = "other facts, points lost ({})"
ITSELF = "the fact itself, recall after ({})"
ELSEWHERE = "rows changed that the fact never wrote ({})"
UNDONE = "rows that the fact alone wrote, not undone to the bit ({})"
KNOWN = "the fact itself, recall before"


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "unlearning", PRESETS, ("data_dir", "bases", "workers"))
    options = begin_study(parser, args)
    steps, num_new, unlearned = PRESETS[options.preset]
    world = world_of(options, steps, num_new)
    seeds = seeds_of(options)
    out = options.out / options.preset
    _, starts = pretrained_memory(world, options, seeds)
    way = Way("taught", "memory", sparse=SPARSE, callbacks=(LEDGER,))
    arm = learning(world, way, starts, out / "arms")
    taught = run_arms([arm], seeds, out, options.workers, SEED_OF_DATA_TOO)[way.name]
    numbers = [
        _unlearn(run, arm.args, unlearned, out / "unlearned" / run.parent.name / run.name, seed)
        for seed, run in zip(seeds, taught, strict=True)
    ]
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize({"unlearning": numbers}),
        [],
        {
            f"{name}, worst seed": at_most(max(n[name] for n in numbers), bound)
            for name, bound in (
                (OTHERS.format("keep"), 2.0),
                *((text.format(way), 0.0) for way in WAYS for text in (ELSEWHERE, UNDONE)),
            )
        },
        device=device_of(taught),
        seeds=seeds,
    )


LEDGER = probe("triptych.callbacks.remember.ledger.slot_ledger.SlotLedger")


def _unlearn(
    run: Path, words: Sequence[str], number: int, folder: Path, seed: int
) -> dict[str, float]:
    """Remove the fact of entry `number` (from 1) in both ways and measure all facts again."""
    ledger = Ledger.open(run / "ledger")
    entry = ledger.entries[min(number, len(ledger)) - 1]
    fact, own_visit = entry.facts[0], (entry.visit or 0) + 1
    before = _recall(run / "export", words, folder / "before", seed)
    numbers = {KNOWN: before[own_visit]}
    for way in WAYS:
        model = folder / way / "export"
        if not model.is_dir():
            command = ["ledger", "unlearn", fact, "--model", str(run / "export")]
            command += ["--ledger", str(run / "ledger"), "--shared_rows", way]
            run_train([*command, "--out", str(model)])
        after = _recall(model, words, folder / way / "asked", seed)
        others = [visit for visit in before if visit != own_visit]
        lost = sum(before[visit] - after[visit] for visit in others) / len(others)
        numbers |= {OTHERS.format(way): 100 * lost, ITSELF.format(way): after[own_visit]}
        tables = _tables(run / "export"), _tables(model)
        numbers[ELSEWHERE.format(way)] = rows_of_others(*tables, ledger, fact)
        numbers[UNDONE.format(way)] = rows_not_undone(tables[1], ledger, fact)
    return numbers


def _recall(model: Path, words: Sequence[str], place: Path, seed: int) -> dict[int, float]:
    """Return the recall of each fact, keyed by its visit (from 1): questions and statements."""
    probes = {
        wording: probe(
            "triptych.callbacks.remember.probes.fact_recall.FactRecall",
            wording=wording,
            visits_per_group=1,
        )
        for wording in ("held_out", "statement")
    }
    found: dict[int, list[float]] = {}
    for row in ask(model, words, probes, place, seed_words(seed)):
        parts = row["metric"].split("_")
        if parts[0] == "visits":
            found.setdefault(int(parts[1]), []).append(row["value"])
    return {visit: sum(values) / len(values) for visit, values in found.items()}


def _tables(folder: Path) -> Tables:
    return [table.weight.detach() for table in value_tables(load_memory_lm(folder))]


def rows_of_others(before: Tables, after: Tables, ledger: Ledger, fact: str) -> float:
    """Count rows that unlearning changed although the fact never wrote them; expected: 0."""
    count = 0
    for old, new, rows in zip(before, after, ledger.rows_of(fact), strict=True):
        changed = ~same_bits(old, new)
        changed[rows] = False
        count += int(changed.sum())
    return float(count)


def rows_not_undone(after: Tables, ledger: Ledger, fact: str) -> float:
    """Count rows that only this fact wrote and that are not restored bit for bit; expected: 0."""
    own = ledger.entries_of(fact)
    others = [entry for number, entry in enumerate(ledger) if number not in own]
    count = 0
    for number, table in enumerate(after):
        first = ledger.entries[own[0]].tables[number]
        shared = [entry.tables[number].rows_U for entry in others]
        alone = ~torch.isin(first.rows_U, torch.cat(shared)) if shared else first.rows_U >= 0
        count += int((~same_bits(first.old_UD[alone], table[first.rows_U[alone]])).sum())
    return float(count)


if __name__ == "__main__":
    main()
