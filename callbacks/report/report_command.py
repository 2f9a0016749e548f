"""The command ``python train.py report``: the page of an old run or study."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from triptych.callbacks.report.run_page import write_run_report
from triptych.callbacks.report.study_page import RESULTS, write_study_report

_DESCRIPTION = (
    "Write report.html into the folder of a run or a study: one file with results, figures, "
    "samples and settings, which opens in any browser and loads nothing from elsewhere."
)


def run_report_command(words: Sequence[str]) -> Path:
    """Write the report of one or more folders, and return the path of the last one.

    Args:
        words: The words after `report`.

    Raises:
        FileNotFoundError: if a folder holds neither a run nor a study.
    """
    parser = argparse.ArgumentParser("train.py report", description=_DESCRIPTION)
    parser.add_argument(
        "folder",
        nargs="+",
        type=Path,
        help="folder of a run (with summary.json) or of a study (with results.json)",
    )
    path = Path()
    for folder in parser.parse_args(words).folder:
        is_study = (folder / RESULTS).is_file()
        path = write_study_report(folder) if is_study else write_run_report(folder)
        print(f"{path} ({path.stat().st_size / 1000:,.0f} kB)")
    return path
