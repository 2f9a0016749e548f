"""Options of the command line that studies have in common."""

import argparse
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any, Literal

Taken = Literal["data_dir", "bases", "workers", "split"]

FOLDER = Path("runs/studies")
#: Seed of the first run of each split: settings are not chosen on seeds that are reported.
FIRST_SEED = {"report": 1, "tuning": 100}
_OPTIONS: dict[str, dict[str, Any]] = {
    "data_dir": {"help": "folder with pretrain/ and qa/; default: embedded data"},
    "bases": {"type": Path, "default": FOLDER / "retention" / "bases"},
    "workers": {"type": int, "default": 2, "help": "runs at a time, one thread each"},
    "split": {
        "choices": tuple(FIRST_SEED),
        "default": "report",
        "help": "which NEW facts and seeds: `tuning` has others, to choose settings by",
    },
}


def study_parser(
    doc: str,
    name: str,
    presets: Iterable[str],
    takes: Collection[Taken] = ("workers",),
    num_seeds: int | None = 3,
    seeds_help: str = "number of seeds of each arm",
    preset_help: str = "how much to run",
) -> argparse.ArgumentParser:
    """A parser with `--preset`, `--seeds`, `--out`, and the options that are named.

    Args:
        doc: Docstring of the study, whose first line describes it.
        name: Of its folder.
        presets: What `--preset` may be; `smoke` is one.
        takes: Which other options it has.
        num_seeds: Default of `--seeds`.
        seeds_help: What `--seeds` counts.
        preset_help: What `--preset` chooses.
    """
    parser = argparse.ArgumentParser(description=doc.split("\n")[0])
    parser.add_argument("--preset", choices=presets, default="smoke", help=preset_help)
    parser.add_argument("--seeds", type=int, default=num_seeds, help=seeds_help)
    known = {**_OPTIONS, "out": {"type": Path, "default": FOLDER / name}}
    for option in ("data_dir", "out", "bases", "workers", "split"):
        if option in ("out", *takes):
            parser.add_argument(f"--{option}", **known[option])
    return parser


def seeds_of(options: argparse.Namespace, first: int = 1) -> list[int]:
    """The seeds of a study's runs: `--seeds` of them, of preset `smoke` one."""
    return list(range(first, first + (1 if options.preset == "smoke" else options.seeds)))
