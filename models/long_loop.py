"""Progress of a loop that may take long: a bar in a terminal, regular lines anywhere else."""

import time
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
#: A loop that ends sooner shows nothing outside of a terminal.
QUIET_SECONDS = 5.0
SECONDS_BETWEEN_LINES = 20.0


def with_progress(
    items: Iterable[Item],
    title: str,
    total: int,
    is_shown: bool = True,
    has_bar: bool = True,
) -> Iterator[Item]:
    """Yield items, and show how many have been worked on.

    Args:
        items: The items.
        title: What they are, such as ``closed-book questions``.
        total: Their number.
        is_shown: Whether to show anything: one of several processes does.
        has_bar: Whether a terminal gets a bar; False where the bar of the training is on screen,
            which lines then stand above.
    """
    console = Console()
    if is_shown and has_bar and console.is_terminal:
        yield from track(items, title, total=total, console=console, transient=True)
        return
    began = time.monotonic()
    next_line_at = began + QUIET_SECONDS
    for number, item in enumerate(items):
        now = time.monotonic()
        if is_shown and number and now >= next_line_at:
            next_line_at = now + SECONDS_BETWEEN_LINES
            left = timedelta(seconds=round((now - began) / number * (total - number)))
            clock = f"{datetime.now():%H:%M:%S}"
            print(f"{clock}  {title}: {number:,}/{total:,}  ETA {left}", flush=True)
        yield item
