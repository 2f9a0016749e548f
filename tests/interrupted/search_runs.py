"""Compares the files of two molecule searches, and waits for a process."""

import csv
import json
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path


def calls(run: Path) -> list[tuple]:
    """All rows of a run's ledger, those reserved and not made included."""
    connection = sqlite3.connect(run / "oracle.sqlite")
    try:
        return connection.execute("SELECT * FROM calls ORDER BY call").fetchall()
    finally:
        connection.close()


def metrics(run: Path) -> dict[tuple[str, str], str]:
    """Everything logged, by step and name; of a step that was taken twice, the second time."""
    with (run / "metrics.csv").open() as file:
        return {
            (row["step"], key): value
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key not in ("step", "epoch", "time") and "second" not in key
        }


def last_metrics(run: Path) -> dict[str, float]:
    """The metrics of a run's summary, without its speed."""
    found = json.loads((run / "summary.json").read_text())["metrics"]
    return {name: value for name, value in found.items() if "second" not in name}


def differences(whole: Path, resumed: Path) -> list[str]:
    """What differs between two runs: ledger, metrics of every step, summary, hits."""
    found = []
    ours, theirs = calls(whole), calls(resumed)
    if ours != theirs:
        pairs = zip(ours, theirs, strict=False)
        first = next((a for a, b in pairs if a != b), "one is longer")
        found.append(f"ledgers of {len(ours)} and {len(theirs)} calls, first at {first}")
    if len({row[1] for row in theirs}) != len(theirs):
        found.append("a molecule is in the ledger twice")
    rows, others = metrics(whole), metrics(resumed)
    found += [
        f"{key} at step {step}: {rows.get((step, key))}, then {others[step, key]}"
        for step, key in others
        if rows.get((step, key)) != others[step, key]
    ]
    if last_metrics(whole) != last_metrics(resumed):
        found.append("metrics in summary.json")
    if (whole / "hits.csv").read_text() != (resumed / "hits.csv").read_text():
        found.append("hits.csv")
    return found


def wait_until(
    is_there: Callable[[], bool], is_alive: Callable[[], bool], timeout_s: float
) -> None:
    """Wait for something that a living process does."""
    deadline = time.monotonic() + timeout_s
    while not is_there():
        if not is_alive():
            raise RuntimeError("the run ended before it could be killed")
        if time.monotonic() > deadline:
            raise TimeoutError(f"the run did not come that far in {timeout_s:g} s")
        time.sleep(0.02)
