"""Runs on a real chat model: rivals of MARA as words, and the numbers of their validations."""

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

RLOO, MARA, ENTROPY = "RLOO", "MARA", "RLOO, entropy bonus"
SMOOTHING, PASS_AT_K, UNLIKELINESS = "differential smoothing", "pass@k advantages", "unlikeliness"
_RIVALS = "triptych.objectives.diversify.rivals"


def rival_words(
    right_reward: float, entropy_coefficient: float, gamma: float
) -> dict[str, tuple[str, ...]]:
    """Return the command-line words of each method, for a configuration that has MARA.

    Args:
        right_reward: Rewards of at least this are right.
        entropy_coefficient: Of the entropy bonus.
        gamma: Both gammas of differential smoothing.
    """

    def loss(name: str, **settings: float) -> tuple[str, ...]:
        value = {"class_path": f"{_RIVALS}.{name}", "init_args": settings}
        return (*without, "--model.init_args.loss", json.dumps(value))

    without = ("--model.init_args.mara", "null")
    entropy = ("--model.init_args.entropy_bonus.coefficient", str(entropy_coefficient))
    return {
        RLOO: without,
        MARA: (),
        ENTROPY: (*without, *entropy),
        SMOOTHING: loss(
            "differential_smoothing.DifferentialSmoothing",
            gamma_right=gamma,
            gamma_wrong=gamma,
            right_reward=right_reward,
        ),
        PASS_AT_K: loss("pass_at_k.PassAtK", right_reward=right_reward),
        UNLIKELINESS: loss("unlikeliness.Unlikeliness"),
    }


def run_words(config: str, model: str, steps: int) -> tuple[str, ...]:
    """Return the words of a run that validates before its first step and after its last one."""
    return (
        *("--config", config),
        *("--model.init_args.policy.base.pretrained", model),
        *("--trainer.max_steps", str(steps)),
        *("--trainer.val_check_interval", str(steps)),
        *("--trainer.accelerator", "cpu"),
        *("--callback.SampleTable.max_rows", "10000"),
    )


def first_words(name: str) -> tuple[str, ...]:
    """Return the words that leave out the first validation, which is the same in all arms."""
    return () if name == RLOO else ("--model.init_args.evaluate_first", "false")


def validations(run: Path, set_name: str, keys: Mapping[str, str]) -> list[dict[str, float]]:
    """Read the numbers of a run's validations from its `metrics.csv`, in their order.

    Args:
        run: The run's folder.
        set_name: The held-out set.
        keys: Name of a number -> its log key, without `val/<set>/`.
    """
    with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    columns = {name: f"val/{set_name}/{key}" for name, key in keys.items()}
    found = [row for row in rows if all(row.get(column) for column in columns.values())]
    return [{name: float(row[column]) for name, column in columns.items()} for row in found]


def last_samples(run: Path, set_name: str, num_prompts: int = 6) -> dict[str, list[str]]:
    """Return the replies to the first prompts of a held-out set in a run's last validation."""
    tables = sorted((run / "samples").glob("step_*.json"), key=lambda p: int(p.stem.split("_")[1]))
    rows: Sequence[Mapping[str, Any]] = json.loads(tables[-1].read_text(encoding="utf-8"))
    replies: dict[str, list[str]] = {}
    for row in rows:
        if row["set"] == set_name and (row["prompt"] in replies or len(replies) < num_prompts):
            replies.setdefault(row["prompt"], []).append(str(row["completion"]))
    return replies
