"""Output of a benchmark: a JSON file and tables on the terminal."""

import argparse
import json
import os
import platform
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from triptych.benchmarks.paired import Timing, time_ratio


@dataclass(frozen=True)
class Check:
    """A comparison of a measured value with its bound.

    Args:
        value: Measured value.
        bound: Bound that was fixed beforehand.
        held: True if the value is on the right side of the bound.
    """

    value: float
    bound: float
    held: bool


def at_least(value: float, bound: float) -> Check:
    """Return a check that holds if the value reaches the bound."""
    return Check(value, bound, value >= bound)


def at_most(value: float, bound: float) -> Check:
    """Return a check that holds if the value does not exceed the bound."""
    return Check(value, bound, value <= bound)


@dataclass
class Report:
    """The answer to the question of a benchmark.

    Args:
        question: Name of the benchmark.
        device: Result of `describe_device`.
        rows: Results of `Timing.row`.
        ratios: Maps "peer@size" to the peer's time over ours; above 1 we are faster.
        memory_ratios: Maps "peer@size" to the peer's peak memory over ours.
        checks: Maps names to checks.
        more: Further entries of the JSON.
    """

    question: str
    device: dict[str, Any]
    rows: list[dict[str, Any]] = field(default_factory=list)
    ratios: dict[str, float] = field(default_factory=dict)
    memory_ratios: dict[str, float] = field(default_factory=dict)
    checks: dict[str, Check] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)

    def add(self, timings: list[Timing]) -> None:
        """Add a comparison; the first timing is ours."""
        self.rows += [timing.row() for timing in timings]
        ours = timings[0]
        for peer in timings[1:]:
            key = f"{peer.name}@{peer.size}"
            self.ratios[key] = time_ratio(peer, ours)
            self.memory_ratios[key] = peer.peak_bytes / max(1, ours.peak_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Return the stored form. `held` is true if all checks hold; false is a valid result."""
        held = all(check.held for check in self.checks.values())
        entries = asdict(self)
        return {**entries, **entries.pop("more"), "held": held}

    def write(self, out: Path) -> None:
        """Write the JSON file."""
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(self.to_dict(), indent=2) + "\n")

    def finish(self, out: Path | None, console: Console) -> "Report":
        """Write the JSON file if `out` is given and print its path; return the report."""
        if out is not None:
            self.write(out)
            console.print(f"written to {out}")
        return self

    def print(self, console: Console) -> None:
        """Print a table for each size, and the checks."""
        for size in dict.fromkeys(row["size"] for row in self.rows):
            table = Table(f"{size:,}", "median", "p10 to p90", "peak", "over ours", "memory")
            for row in self.rows:
                if row["size"] == size:
                    table.add_row(*self._cells(row))
            console.print(table)
        self.print_checks(console)

    def print_checks(self, console: Console) -> None:
        """Print each check with its value, bound and verdict."""
        for name, check in self.checks.items():
            verdict = "held" if check.held else "[bold]not held[/bold]"
            side = "at least" if (check.value >= check.bound) == check.held else "at most"
            console.print(f"{name}: {check.value:.4g}, {side} {check.bound:.4g}: {verdict}")

    def _cells(self, row: dict[str, Any]) -> list[str]:
        key = f"{row['name']}@{row['size']}"
        return [
            row["name"],
            f"{row['median_s'] * 1e3:.0f} ms",
            f"{row['p10_s'] * 1e3:.0f} to {row['p90_s'] * 1e3:.0f}",
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
            f"{self.ratios[key]:.2f}x" if key in self.ratios else "",
            f"{self.memory_ratios[key]:.2f}x" if key in self.memory_ratios else "",
        ]


def wide_console() -> Console:
    """Return a console; without a terminal it is as wide as the tables."""
    console = Console()
    return console if console.is_terminal else Console(width=110)


def describe_device(device: torch.device) -> dict[str, Any]:
    """Describe the properties of the machine that affect the numbers."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").is_file():
        models = [
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ]
        name = models[0] if models else name
    return {
        "type": device.type,
        "name": name,
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE") == "1",
        "load_average_before": os.getloadavg()[0],
    }


def run_main(main: Callable[[], Report]) -> None:
    """Run a benchmark as a program; print an error in its options as one line."""
    try:
        main()
    except ValueError as error:
        sys.exit(f"error: {error}")


def benchmark_parser(description: str) -> argparse.ArgumentParser:
    """Build a parser with the options of every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="few rounds, at most a minute")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    parser.add_argument("--threads", type=int, help="torch threads on the CPU; default: all cores")
    return parser


def prepare_device(name: str | None, num_threads: int | None) -> torch.device:
    """Choose the device and the number of threads.

    Raises:
        ValueError: if the device is missing or the number of threads is not positive.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU here; leave it out or give cpu")
    if num_threads is not None and num_threads < 1:
        raise ValueError(f"--threads must be at least 1, got {num_threads}")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    torch.set_num_threads(num_threads or cores or 1)
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
