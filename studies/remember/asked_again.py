"""Measurement of an exported model with the probes and data of the run that taught it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.cli import main as run_train
from triptych.studies.arms import Settings, probe

Rows = list[dict[str, Any]]


def ask(
    model: Path,
    args: Sequence[str],
    probes: Mapping[str, Settings],
    place: Path,
    seed_words: Sequence[str],
) -> Rows:
    """Measure a model, or read an earlier measurement.

    Args:
        model: Exported folder.
        args: Command-line words after `fit` of the run that supplies data and facts.
        probes: Maps names to probes.
        place: Run directory of the measurement.
        seed_words: Command-line words that set the seed.

    Returns:
        Rows of `forgetting.json`: `probe`, `metric`, `value`, ...
    """
    if not (place / "forgetting.json").is_file():
        measured = probe(
            "triptych.callbacks.remember.forgetting.forgetting_evaluation.ForgettingEvaluation",
            probes=probes,
        )
        words = [
            *("validate", *args, *seed_words, "--run_dir", str(place)),
            *("--model.init_args.init_from", str(model)),
            *("--trainer.limit_val_batches", "1"),  # the validation of the datamodule is not needed
            *("--trainer.callbacks", json.dumps([measured])),
        ]
        run_train(words)
    rows: Rows = json.loads((place / "forgetting.json").read_text())["rows"]
    return rows
