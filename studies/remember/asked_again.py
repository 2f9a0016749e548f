"""Asking an exported model what it knows, by the probes of a run that taught it."""

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
    """Measure a model; what was measured before is read again.

    Args:
        model: Exported folder.
        args: Words of the command line after `fit`, of the run whose data and facts are meant.
        probes: Probes by name.
        place: Run directory of the measurement.
        seed_words: Options of the seed.

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
            *("--trainer.limit_val_batches", "1"),  # the data's own validation is not needed
            *("--trainer.callbacks", json.dumps([measured])),
        ]
        run_train(words)
    rows: Rows = json.loads((place / "forgetting.json").read_text())["rows"]
    return rows
