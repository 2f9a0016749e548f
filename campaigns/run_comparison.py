"""Compares two runs bit for bit: weights, every metric, summary, ledgers."""

import csv
import hashlib
import json
import sqlite3
from pathlib import Path
from typing import Any

# Clocks and machines, which no two runs share.
NOT_COMPARED = ("per_second", "seconds", "memory_mib", "throughput")
Metrics = dict[tuple[str, str], str]


def differences(whole: Path, other: Path) -> list[str]:
    """Return what differs between a run that was left alone and one that was killed."""
    found = _of_dicts("exported file", _export(whole), _export(other))
    found += _of_dicts("summary", _summary(whole), _summary(other))
    found += _of_dicts("metrics.csv", _metrics(whole), _metrics(other))
    found += _of_dicts("table", _tables(whole), _tables(other))
    if _calls(whole) != _calls(other):
        found.append("oracle.sqlite")
    ledgers = [sorted(p.read_bytes() for p in (run / "ledger").glob("*")) for run in (whole, other)]
    if ledgers[0] != ledgers[1]:
        found.append(f"ledger: {len(ledgers[0])} and {len(ledgers[1])} entries")
    left = [path for path in other.rglob(".*") if path.name.endswith((".partial", ".old"))]
    return found + [f"left behind: {path.relative_to(other)}" for path in left]


def _of_dicts(what: str, ours: dict[Any, Any], theirs: dict[Any, Any]) -> list[str]:
    keys = [key for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)]
    if not keys:
        return []
    first = keys[0]
    values = f"{str(ours.get(first))[:60]} and then {str(theirs.get(first))[:60]}"
    return [f"{what}: {len(keys)} of {len(ours)}, such as {first}: {values}"]


def _export(run: Path) -> dict[str, str]:
    folder = run / "export"
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def _metrics(run: Path) -> Metrics:
    """Everything in metrics.csv; of a step that was taken twice, the second time."""
    with (run / "metrics.csv").open(newline="") as file:
        return {
            (row["step"], key): value
            for row in csv.DictReader(file)
            for key, value in row.items()
            if value and key not in ("step", "epoch", "time") and _is_compared(key)
        }


def _summary(run: Path) -> dict[str, Any]:
    content = json.loads((run / "summary.json").read_text())
    metrics = {name: value for name, value in content["metrics"].items() if _is_compared(name)}
    names = ("status", "steps", "export", "best_checkpoint", "last_checkpoint")
    return {**{name: content[name] for name in names}, **metrics}


def _tables(run: Path) -> dict[str, bool]:
    """Figures and tables: that they are there; a figure may show times."""
    files = [*run.glob("figures/*.png"), *run.glob("*.csv"), *run.glob("report.html")]
    return {path.relative_to(run).as_posix(): True for path in files if "system" not in path.name}


def _calls(run: Path) -> list[tuple[Any, ...]]:
    if not (run / "oracle.sqlite").is_file():
        return []
    connection = sqlite3.connect(run / "oracle.sqlite")
    try:
        return connection.execute("SELECT * FROM calls ORDER BY call").fetchall()
    finally:
        connection.close()


def _is_compared(name: str) -> bool:
    return not any(word in name for word in NOT_COMPARED)
