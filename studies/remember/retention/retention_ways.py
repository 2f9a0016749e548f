"""The learning methods that each preset of the retention study compares, and their numbers."""

import json
from pathlib import Path
from typing import Any, get_args

from triptych.studies.arms import Settings
from triptych.studies.remember.retention.retention_arms import SPARSE, Hold, Way

TF_ONLY = "sparse, TF only"
SPARSE_NAME = "sparse, TF-IDF"
# From rates that learn almost nothing to rates that lose most of OLD.
FULL_RATES = (1e-6, 3e-6, 1e-5, 3e-5)
LORA_RATES = (3e-6, 1e-5, 3e-5, 1e-4)
#: Arms that sparse memory fine-tuning is compared with at an equal loss of OLD.
SWEEPS = {
    "full": [f"full {rate:g}" for rate in FULL_RATES],
    "LoRA": [f"LoRA {rate:g}" for rate in LORA_RATES],
}


def sparse(name: str, **settings: Any) -> Way:
    """Return sparse memory fine-tuning with some settings changed."""
    return Way(name, "memory", sparse=SPARSE | settings)


def full(rate: float, name: str = "full", **more: Any) -> Way:
    """Return full fine-tuning of the dense twin."""
    return Way(f"{name} {rate:g}", "dense twin", model={"learning_rate": rate}, **more)


def lora(rate: float, name: str = "LoRA", **more: Any) -> Way:
    """Return LoRA on all linear layers of the dense twin."""
    model: Settings = {"learning_rate": rate, "trainable": "lora", "lora": {"rank": 16}}
    return Way(f"{name} {rate:g}", "dense twin", model=model, **more)


def several_passes() -> list[Way]:
    """Return ways with three passes and five steps per visit, which favour full fine-tuning."""
    data: Settings = {"steps_per_visit": 5}
    return [
        Way("3 passes: sparse", "memory", sparse=SPARSE, data=data, num_passes=3),
        full(3e-5, "3 passes: full", data=data, num_passes=3),
    ]


def many_facts_a_batch() -> list[Way]:
    """Return ways with 16 facts per batch and 15 passes: ordinary training, not a stream."""
    data: Settings = {"facts_per_batch": 16, "steps_per_visit": 1}
    wider = SPARSE | {"num_slots": 1024}
    return [
        Way("16 a batch: sparse", "memory", sparse=wider, data=data, num_passes=15),
        full(1e-4, "16 a batch: full", data=data, num_passes=15),
    ]


def ways_of(preset: str) -> list[Way]:
    """Return all ways of a preset; those with checks come first."""
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
    """Return the additions of `full`: sweeps, ablations, regularisers and a long stream."""
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
    """Return full fine-tuning with replay, EWC or a KL, at its usual rates and above."""
    holds: tuple[Hold, ...] = get_args(Hold)
    return [full(rate, hold, held_by=hold) for hold in holds for rate in HELD_RATES]


HELD_RATES = (1e-5, 3e-5, 1e-4, 3e-4)


def long_stream() -> list[Way]:
    """Return ways that learn 300 facts; fewer than 300 have answers from OLD facts."""
    longer: Settings = {"num_new": 300, "novel_answers": True}
    return [
        Way("300 facts: sparse", "memory", sparse=SPARSE, **longer),
        full(3e-5, "300 facts: full", **longer),
    ]


NEW, STATEMENT, BEFORE = "NEW, questions", "NEW, statements", "NEW, questions, before"
OLD, TEXT = "OLD", "text (nats/token)"
OLD_DROP, TEXT_RISE, EARLY = "OLD, points lost", "text, percent", "first 20 facts"


def numbers_of(run: Path) -> dict[str, float]:
    """Read what one run learned and forgot."""
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
