"""What starts the command line: it says so at once, since its imports take some seconds."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triptych.models.host.parent_process import end_with_named_parent

LOADING = "Triptych: loading ..."


def run() -> None:
    """Run the command line of this process; see `triptych.cli.run`."""
    end_with_named_parent()
    with _loading_said():
        from triptych.cli import run as run_command_line
    run_command_line()


def main(args: Any = None) -> Path:
    """Run an experiment from Python; see `triptych.cli.main`."""
    from triptych.cli import main as run_experiment

    return run_experiment(args)


@contextmanager
def _loading_said() -> Iterator[None]:
    """Show a line in a terminal while torch, Lightning and transformers are imported."""
    shown = sys.stderr.isatty() and os.environ.get("LOCAL_RANK", "0") == "0"
    if shown:
        print(LOADING, end="", file=sys.stderr, flush=True)
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)  # as an interrupted run; nothing has begun
    finally:
        if shown:
            print(f"\r{' ' * len(LOADING)}\r", end="", file=sys.stderr, flush=True)
