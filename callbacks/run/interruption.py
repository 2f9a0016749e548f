"""Ctrl-C and SIGTERM: a checkpoint, the run's directory, and the command that goes on."""

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from lightning.pytorch.utilities.exceptions import SIGTERMException

from triptych.models.host.secrets import words_without_secrets

SIGNALS = (signal.SIGINT, signal.SIGTERM)
# A terminal, and a wrapper that passes signals on, may both deliver one Ctrl-C.
SAME_SIGNAL_SECONDS = 0.3
GIVEN_ANEW = ("--ckpt_path", "--run_dir")


class Interrupted(SIGTERMException):
    """A signal has ended the run. The process exits with 130 (SIGINT) or 143 (SIGTERM).

    Trackers mark the run as killed, as for every `SIGTERMException`.

    Args:
        signum: Number of the signal.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


class Interruption:
    """Remembers a signal until a step has ended.

    Attributes:
        signum: The first signal that arrived; None before.
        waits: Whether the first signal only sets `signum`. A second one always raises.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.waits = False
        self._arrived_at = 0.0
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def install(self) -> None:
        """Handle both signals from now on; without effect outside of the main thread."""
        if threading.current_thread() is not threading.main_thread():
            return
        for signum in SIGNALS:
            before = signal.signal(signum, self._handle)
            self._before.setdefault(signum, before)

    def restore(self) -> None:
        """Give the signals back to their former handlers."""
        while self._before:
            signum, handler = self._before.popitem()
            signal.signal(signum, signal.SIG_DFL if handler is None else handler)

    def leave(self) -> None:
        """Raise if a signal has arrived.

        Raises:
            Interrupted: at a signal.
        """
        if self.signum is not None:
            self.waits = False
            raise Interrupted(self.signum)

    def _handle(self, signum: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a forked worker, which its parent will end
            if signum == signal.SIGTERM:
                signal.signal(signum, signal.SIG_DFL)
                os.kill(os.getpid(), signum)
            return
        now = time.monotonic()
        if self.signum is None:
            self.signum, self._arrived_at = signum, now
            if self.waits:
                note = b"\nstopping after this step, with a checkpoint (again: stop at once)\n"
                os.write(2, note)
                return
        elif now - self._arrived_at < SAME_SIGNAL_SECONDS:
            return
        raise Interrupted(self.signum)


@contextmanager
def interruptible(interruption: Interruption) -> Iterator[None]:
    """Handle the signals within; every way in which one ends the run becomes `Interrupted`.

    Raises:
        Interrupted: at a signal.
    """
    interruption.install()
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        if interruption.signum is None:
            raise
        raise Interrupted(interruption.signum) from None
    finally:
        interruption.restore()


def words_to_go_on(words: Sequence[str], run_dir: Path, checkpoint: Path) -> list[str]:
    """Return the words of a command line that resumes a run in its own directory.

    Args:
        words: Those that started the run.
        run_dir: The run's directory.
        checkpoint: The checkpoint to resume from.

    >>> words_to_go_on(["fit", "--ckpt_path=old.ckpt", "--config", "a.yaml"], Path("runs/a"),
    ...     Path("runs/a/checkpoints/last.ckpt"))[1:5]
    ['--config', 'a.yaml', '--run_dir', 'runs/a']
    """
    kept, is_value = list[str](), False
    for word in words:
        if not is_value and word.partition("=")[0] not in GIVEN_ANEW:
            kept.append(word)
        is_value = word in GIVEN_ANEW
    inside = checkpoint.resolve().is_relative_to(run_dir.resolve())
    there = ["--run_dir", str(run_dir)] if inside else []
    return [*kept, *there, "--ckpt_path", str(checkpoint)]


def program() -> list[str]:
    """Return the words that started this program: `python train.py` or `triptych`."""
    script = Path(sys.argv[0])
    if script.name == "train.py":
        return ["python", sys.argv[0]]
    return [sys.argv[0]] if script.name == "triptych" else ["python", "-m", "triptych"]


def farewell(
    interrupted: Interrupted,
    words: Sequence[str],
    run_dir: Path,
    checkpoint: Path | None,
    step: int,
) -> str:
    """Say where an interrupted training stands, and how to go on with it.

    Args:
        interrupted: The signal.
        words: Words of the command line after the program's name.
        run_dir: The run's directory.
        checkpoint: The last checkpoint; None if there is none.
        step: Completed optimizer steps in the checkpoint.
    """
    name = signal.Signals(interrupted.signum).name
    if checkpoint is None:
        command, title = (
            [*program(), *words_without_secrets(list(words))],
            "no step was completed; start again with",
        )
        state = "without a checkpoint"
    else:
        words = words_to_go_on(words_without_secrets(list(words)), run_dir, checkpoint)
        command = [*program(), *words]
        title, state = "go on with", f"the checkpoint is of step {step:,}"
    return f"\ninterrupted ({name}): {state}\nrun: {run_dir}\n{title}\n  {shlex.join(command)}"
