"""A study in MLflow: its folder is a parent run, and each arm and seed a run below it."""

import argparse
import csv
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from triptych.callbacks.tracking.run_record import RunRecord

DEFAULT_URI = "sqlite:///mlflow.db"
PANEL_OF = {
    "remember": (
        *("memory_vs_dense", "real_facts", "retention", "retrofit", "slot_index"),
        "unlearning",
    ),
    "diversify": ("creative_qa", "molecules", "one_or_two", "pass_at_k", "tabular_targets"),
    "commune": ("identifiability", "telepathy"),
}


def begin_study(
    parser: argparse.ArgumentParser, args: Sequence[str] | None = None
) -> argparse.Namespace:
    """Parse the options of a study, and write its record if it is tracked.

    A study is tracked if `--tracking_uri` names a store, and by default unless its preset is
    `smoke`.
    """
    options = parser.parse_args(args)
    uri = _uri(options)
    record = RunRecord(options.out)
    if uri is None and not record.path.is_file():
        return options
    options.out.mkdir(parents=True, exist_ok=True)
    name = str(parser.get_default("study"))
    record.begin(f"studies/{name}", f"{name} {options.preset}")
    record.add("study", {"name": name, "uri": uri})
    params = {key: str(value) for key, value in vars(options).items() if key != "study"}
    record.add("params", params)
    panel = next((panel for panel, names in PANEL_OF.items() if name in names), None)
    tags = {"subcommand": "study", "study": name, "panel": panel}
    record.add("tags", {key: value for key, value in tags.items() if value is not None})
    return options


def tracking_words(out: Path, arm: str, seed: int) -> list[str]:
    """Return the words that make a run part of the study in whose folder it lies.

    Returns:
        Those that turn tracking off, if no folder above is that of a tracked study.
    """
    for folder in (out, *out.parents):
        record = RunRecord(folder)
        study = record.read().get("study") if record.path.is_file() else None
        if not study:
            continue
        if study["uri"] is None:
            break
        tags = {"study": study["name"], "arm": arm}
        return [
            *("--tracking.uri", study["uri"], "--tracking.tags", json.dumps(tags)),
            *("--tracking.parent", str(folder.resolve())),
            *("--experiment", f"studies/{study['name']}", "--run_name", f"{arm}, seed {seed}"),
        ]
    return ["--tracking.uri", "null"]


def end_study(out: Path, results: dict[str, Any]) -> None:
    """Log the means of the arms and the verdict, and bring the study's run up to date."""
    record = RunRecord(out)
    study = record.read().get("study") if record.path.is_file() else None
    if not study or study["uri"] is None:
        return
    means = {
        f"{arm}/{metric}": entry["mean"]
        for arm, metrics in results["arms"].items()
        for metric, entry in metrics.items()
    }
    with (out / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["step", "time", *means])
        writer.writerow([0, round(time.time(), 3), *means.values()])
    record.add("tags", {"held": str(results["held"]).lower(), "claim": results["claim"]})
    record.end("FINISHED")
    # Imported here: a study whose runs are all finished does not need Lightning.
    from triptych.callbacks.tracking.mlflow_tracking import context_tags, resend, resend_command

    record.add("tags", context_tags())
    try:
        resend(out, study["uri"])
    except Exception as error:  # the results are on disk; a store must not spoil them
        print(
            f"MLflow at {study['uri']} lacks this study ({error}); send it later with\n"
            f"  {resend_command(out, study['uri'])}",
            file=sys.stderr,
        )


def _uri(options: argparse.Namespace) -> str | None:
    if options.tracking_uri == "null" or (
        options.tracking_uri is None and options.preset.endswith("smoke")
    ):
        return None
    from triptych.callbacks.tracking.mlflow_store import checked_uri

    return checked_uri(options.tracking_uri or DEFAULT_URI)
