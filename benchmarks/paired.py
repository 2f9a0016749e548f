"""Paired timing in the order A B A B, so that other load on the machine affects both sides."""

import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from rich.console import Console
from rich.progress import Progress, TaskID
from torch.autograd.profiler import profile

Returned = TypeVar("Returned")


def _nothing() -> None:
    """Free nothing."""


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Args:
        name: Name in the report.
        run: Work to time.
        release: Frees objects that survive a run, such as gradients; not timed.
    """

    name: str
    run: Callable[[], Any]
    release: Callable[[], None] = _nothing


@dataclass(frozen=True)
class Timing:
    """Time and memory of one side.

    Args:
        name: Name of the side.
        size: Size of the problem.
        seconds: Seconds of each round, in order.
        peak_bytes: Peak memory of tensors that the run created.
    """

    name: str
    size: int
    seconds: list[float]
    peak_bytes: int

    @property
    def median_s(self) -> float:
        """Median over the rounds, in seconds."""
        return quantile(self.seconds, 0.5)

    def row(self) -> dict[str, Any]:
        """Return the row of the report."""
        return {
            "name": self.name,
            "size": self.size,
            "median_s": self.median_s,
            "p10_s": quantile(self.seconds, 0.1),
            "p90_s": quantile(self.seconds, 0.9),
            "min_s": min(self.seconds),
            "num_runs": len(self.seconds),
            "peak_bytes": self.peak_bytes,
        }


def quantile(values: list[float], share: float) -> float:
    """Compute a quantile by linear interpolation.

    >>> quantile([3.0, 1.0, 2.0], 0.5), quantile([1.0, 2.0], 0.1)
    (2.0, 1.1)
    """
    return float(torch.tensor(values, dtype=torch.float64).quantile(share))


def time_ratio(peer: Timing, ours: Timing) -> float:
    """Compute the peer's time over ours: the median over rounds of the ratio of the two runs."""
    pairs = zip(peer.seconds, ours.seconds, strict=True)
    return quantile([theirs / mine for theirs, mine in pairs], 0.5)


class PairedTimer:
    """Times sides in turn and shows its progress.

    Args:
        device: Device of the work.
        min_rounds: Minimum number of rounds.
        max_rounds: Maximum number of rounds.
        budget_s: Seconds after which a comparison ends once it has `min_rounds`.
    """

    def __init__(
        self, device: torch.device, min_rounds: int, max_rounds: int, budget_s: float
    ) -> None:
        self.device = device
        self.min_rounds = min_rounds
        self.max_rounds = max_rounds
        self.budget_s = budget_s
        self._progress = Progress(console=Console(stderr=True), transient=True)

    def __enter__(self) -> "PairedTimer":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def compare(self, title: str, size: int, sides: list[Side]) -> list[Timing]:
        """Run each side once for warm-up and peak memory, then time the sides in turn."""
        task = self._progress.add_task(f"{title}, {size:,}", total=self.max_rounds + 1)
        peaks = []
        for side in sides:
            peaks.append(peak_bytes(side.run, self.device))
            side.release()
        self._progress.advance(task)
        seconds: list[list[float]] = [[] for _ in sides]
        began = time.perf_counter()
        while not self._is_enough(len(seconds[0]), time.perf_counter() - began):
            for side, taken in zip(sides, seconds, strict=True):
                taken.append(seconds_of(side.run, self.device))
                side.release()
            self._progress.advance(task)
        self._progress.remove_task(TaskID(task))
        return [
            Timing(side.name, size, taken, peak)
            for side, taken, peak in zip(sides, seconds, peaks, strict=True)
        ]

    def _is_enough(self, num_rounds: int, elapsed_s: float) -> bool:
        if num_rounds < self.min_rounds:
            return False
        return num_rounds >= self.max_rounds or elapsed_s > self.budget_s


def seconds_of(run: Callable[[], Any], device: torch.device) -> float:
    """Time one run until the device has finished; the result is freed after the clock stops."""
    synchronize(device)
    began = time.perf_counter()
    kept = run()
    synchronize(device)
    elapsed = time.perf_counter() - began
    del kept
    return elapsed


class Stopwatch:
    """Adds up the seconds of named parts of a run.

    Args:
        device: Device of the work.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, part: str, run: Callable[[], Returned]) -> Returned:
        """Run and time one part; return its result."""
        kept: list[Returned] = []
        self.seconds[part] += seconds_of(lambda: kept.append(run()), self.device)
        return kept.pop()


def median_parts(
    time_parts: Callable[[Stopwatch], None], device: torch.device, rounds: int
) -> dict[str, float]:
    """Compute the median seconds of each part over several rounds."""
    clocks = [Stopwatch(device) for _ in range(rounds)]
    for clock in clocks:
        time_parts(clock)
    return {part: quantile([c.seconds[part] for c in clocks], 0.5) for part in clocks[0].seconds}


def synchronize(device: torch.device) -> None:
    """Wait for an accelerator; a CPU works synchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_bytes(run: Callable[[], Any], device: torch.device) -> int:
    """Measure the peak memory of tensors that a run creates."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with _quiet_stderr(), profile(use_cpu=True, profile_memory=True) as recorded:
        run()
    events = [event for event in recorded.kineto_results.events() if event.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def most_resident_bytes() -> int:
    """Return the peak resident memory of this program, without its parent process.

    On Linux the `ru_maxrss` of a child process includes the memory of its parent.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        (line,) = [row for row in status.read_text().splitlines() if row.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _quiet_stderr() -> Iterator[None]:
    """Discard messages that the native profiler writes to file descriptor 2."""
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
