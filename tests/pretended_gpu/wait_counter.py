"""Counts where the host waits for the device, by the place that made it wait."""

import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

ROOT = f"{Path(__file__).parents[2]}/"
HERE = f"{Path(__file__).parent}/"


@dataclass(frozen=True, order=True)
class Wait:
    """One way of waiting at one place.

    Attributes:
        place: `file:line function`; of the caller too, where one is ours.
        kind: What waits: an operation, or a copy to or from the device.
        is_ours: False where Lightning waits for itself, and the repository only called it.
    """

    place: str
    kind: str
    is_ours: bool = True


class WaitCounter:
    """Counts waits while it is `counting`."""

    def __init__(self) -> None:
        self.counting = False
        self.waits: Counter[Wait] = Counter()

    def start(self) -> None:
        """Begin anew."""
        self.waits.clear()
        self.counting = True

    def stop(self) -> Counter[Wait]:
        """Return the waits since `start`."""
        self.counting = False
        return Counter(self.waits)

    def add(self, kind: str) -> None:
        """Count a wait of whoever calls torch."""
        if self.counting:
            place, is_ours = _place(sys._getframe(1))
            self.waits[Wait(place, kind, is_ours)] += 1


def _place(frame: FrameType | None) -> tuple[str, bool]:
    """Name the innermost frames of the repository, or that of Lightning if it is further inside."""
    places: list[str] = []
    while frame is not None and len(places) < 2:
        name = frame.f_code.co_filename
        if "/lightning/" in name and not places:
            short = name[name.rindex("/lightning/") + 1 :]
            return f"{short}:{frame.f_lineno} {frame.f_code.co_name}", False
        ours = name.startswith(ROOT) and "/.venv/" not in name and not name.startswith(HERE)
        if ours and not (places and name.endswith("triptych/cli.py")):
            places.append(f"{name.removeprefix(ROOT)}:{frame.f_lineno} {frame.f_code.co_name}")
        frame = frame.f_back
    return " < ".join(places) or "(outside of the repository)", True


def table(waits: Counter[Wait]) -> str:
    """Lay the waits out in lines, the most frequent first."""
    lines = [
        f"{number:6d}  {wait.kind:22s}  {wait.place}{'' if wait.is_ours else '  (Lightning)'}"
        for wait, number in sorted(waits.items(), key=lambda one: (-one[1], one[0]))
    ]
    ours = sum(number for wait, number in waits.items() if wait.is_ours)
    return "\n".join([f"{sum(waits.values())} waits, {ours} of them ours", *lines])
