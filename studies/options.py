"""Command-line options that studies share."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

Taken = Literal["data_dir", "bases", "workers", "split"]

FOLDER = Path("runs/studies")
#: First seed of each split: settings are not tuned on the seeds that are reported.
FIRST_SEED = {"report": 1, "tuning": 100}
TRACKING_HELP = (
    "MLflow store or server of the study and its runs, `null` for none; default: none for preset "
    "`smoke`, otherwise sqlite:///mlflow.db"
)
_OPTIONS: dict[str, dict[str, Any]] = {
    "data_dir": {"help": "folder with the data; default: embedded data"},
    "bases": {"type": Path, "default": FOLDER / "retention" / "bases"},
    "workers": {"type": int, "default": 2, "help": "runs at a time, one thread each"},
    "split": {
        "choices": tuple(FIRST_SEED),
        "default": "report",
        "help": "NEW facts and seeds: `tuning` has different ones, to choose settings",
    },
}


def study_parser(
    doc: str,
    name: str,
    presets: Iterable[str],
    takes: Sequence[Taken] = ("workers",),
    num_seeds: int | None = 3,
    seeds_help: str = "number of seeds of each arm",
    preset_help: str = "how much to run",
) -> argparse.ArgumentParser:
    """Build a parser with the options of every study and those in `takes`.

    Every study has `--preset`, `--seeds`, `--out` and `--tracking_uri`.

    Args:
        doc: Docstring of the study; its first line is the description.
        name: Name of the output folder.
        presets: Choices of `--preset`, `smoke` among them.
        takes: Further options of the study.
        num_seeds: Default of `--seeds`.
        seeds_help: Help text of `--seeds`.
        preset_help: Help text of `--preset`.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--preset", choices=presets, default="smoke", help=preset_help)
    parser.add_argument("--seeds", type=int, default=num_seeds, help=seeds_help)
    known = {**_OPTIONS, "out": {"type": Path, "default": FOLDER / name}}
    parser.add_argument("--tracking_uri", help=TRACKING_HELP)
    parser.set_defaults(study=name)
    for option in ("data_dir", "out", "bases", "workers", "split"):
        if option in ("out", *takes):
            parser.add_argument(f"--{option}", **known[option])
    return parser


def seeds_of(options: argparse.Namespace, first: int = 1) -> list[int]:
    """Return the seeds of a study: `--seeds` in number, or one in preset `smoke`."""
    return list(range(first, first + (1 if options.preset == "smoke" else options.seeds)))
