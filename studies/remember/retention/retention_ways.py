"""Which ways of learning each preset of the retention study compares."""

import json
from pathlib import Path
from typing import get_args

from triptych.studies.arms import Settings
from triptych.studies.remember.retention.retention_arms import SPARSE, Hold, Way

TF_ONLY = "sparse, TF only"
SPARSE_NAME = "sparse, TF-IDF"
# From where hardly anything is learned to where most of OLD is lost.
FULL_RATES = (1e-6, 3e-6, 1e-5, 3e-5)
LORA_RATES = (3e-6, 1e-5, 3e-5, 1e-4)
#: The arms that checks are made of.
JUDGED = {
    "sparse": SPARSE_NAME,
    "tf only": TF_ONLY,
    "full": [f"full {rate:g}" for rate in FULL_RATES],
    "LoRA": [f"LoRA {rate:g}" for rate in LORA_RATES],
}


def sparse(name: str, **settings: object) -> Way:
    """Sparse memory finetuning with some settings changed."""
    return Way(name, "memory", sparse=SPARSE | settings)


def full(rate: float, name: str = "full", **more: object) -> Way:
    """Full finetuning of the dense twin."""
    return Way(f"{name} {rate:g}", "dense twin", model={"learning_rate": rate}, **more)


def lora(rate: float, name: str = "LoRA", **more: object) -> Way:
    """LoRA on all linear layers of the dense twin."""
    model: Settings = {"learning_rate": rate, "trainable": "lora", "lora": {"rank": 16}}
    return Way(f"{name} {rate:g}", "dense twin", model=model, **more)


def several_passes() -> list[Way]:
    """Three passes over the facts, five steps a visit: where full finetuning has its case."""
    data: Settings = {"steps_per_visit": 5}
    return [
        Way("3 passes: sparse", "memory", sparse=SPARSE, data=data, num_passes=3),
        full(3e-5, "3 passes: full", data=data, num_passes=3),
    ]


def many_facts_a_batch() -> list[Way]:
    """Sixteen facts a batch, fifteen passes: ordinary training rather than a stream."""
    data: Settings = {"facts_per_batch": 16, "steps_per_visit": 1}
    wider = SPARSE | {"num_slots": 1024}
    return [
        Way("16 a batch: sparse", "memory", sparse=wider, data=data, num_passes=15),
        full(1e-4, "16 a batch: full", data=data, num_passes=15),
    ]


def ways_of(preset: str) -> list[Way]:
    """All ways of a preset; the first are those that are judged."""
    judged = [
        sparse(SPARSE_NAME),
        sparse(TF_ONLY, ranking="tf"),
        *(full(rate) for rate in FULL_RATES),
        *(lora(rate) for rate in LORA_RATES),
    ]
    if preset == "smoke":
        return [*judged[:2], full(1e-5), lora(3e-5)]
    ways = [*judged, *several_passes(), *many_facts_a_batch()]
    return ways if preset == "cpu" else [*ways, *ablations()]


def ablations() -> list[Way]:
    """What `full` adds: sweeps, ablations, replay, EWC, KL to the base, a long stream."""
    rate = SPARSE["learning_rate"]
    return [
        *(sparse(f"sparse, rate {share * rate:g}", learning_rate=share * rate) for share in RATES),
        *(sparse(f"sparse, t = {slots}", num_slots=slots) for slots in (64, 128, 256, 512)),
        *(sparse(f"sparse, idf^{power:g}", idf_exponent=power) for power in (1.0, 2.0)),
        sparse("sparse, KL", ranking="kl"),
        sparse("sparse, all read", ranking="all", num_slots=None, score_share=1.0),
        *(
            sparse(f"sparse, SGD {step:g}", optimizer="sgd", learning_rate=step)
            for step in (10.0, 30.0, 100.0)
        ),
        *held_back(),
        *long_stream(),
        Way("novel answers: sparse", "memory", sparse=SPARSE, novel_answers=True),
        full(3e-5, "novel answers: full", novel_answers=True),
    ]


RATES = (0.25, 0.5, 2.0)


def held_back() -> list[Way]:
    """Full finetuning that is held back, at the rates of full finetuning and above."""
    holds: tuple[Hold, ...] = get_args(Hold)
    return [full(rate, hold, held_by=hold) for hold in holds for rate in HELD_RATES]


HELD_RATES = (1e-5, 3e-5, 1e-4, 3e-4)


def long_stream() -> list[Way]:
    """300 facts, one after another; not so many have answers that OLD facts taught."""
    longer: Settings = {"num_new": 300, "novel_answers": True}
    return [
        Way("300 facts: sparse", "memory", sparse=SPARSE, **longer),
        full(3e-5, "300 facts: full", **longer),
    ]


NEW, STATEMENT, BEFORE = "NEW, questions", "NEW, statements", "NEW, questions, before"
OLD, TEXT = "OLD", "text (nats/token)"
OLD_DROP, TEXT_RISE, EARLY = "OLD, points lost", "text, percent", "first 20 facts"


def numbers_of(run: Path) -> dict[str, float]:
    """What one run learned and forgot."""
    measured = json.loads((run / "forgetting.json").read_text())["rows"]
    start, end = (
        {
            (row["probe"], row["metric"]): row["value"]
            for row in measured
            if (row["step"], row["visit"]) == (at["step"], at["visit"])
        }
        for at in (measured[0], measured[-1])
    )
    exact, nll = "exact_match", ("text", "nll_nats_per_token")
    return {
        NEW: end["new_question", exact],
        STATEMENT: end["new_statement", exact],
        BEFORE: start["new_question", exact],
        OLD: end["old", exact],
        OLD_DROP: 100 * (start["old", exact] - end["old", exact]),
        TEXT: end[nll],
        TEXT_RISE: 100 * (end[nll] / start[nll] - 1),
        EARLY: end["new_question", f"first_20_visits_{exact}"],
    }
