"""Runs of the command line in forked processes, with the imports done once.

The process of the campaign never computes with torch, so that forking it is safe.
"""

import importlib
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from triptych import ROOT

PRELOADED = (
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "rdkit.Chem",
    "pyarrow.parquet",
    "transformers.models.llama.modeling_llama",
    "triptych.cli",
    "triptych.lit_modules.remember.continual_finetuning",
    "triptych.lit_modules.remember.memory_pretraining",
    "triptych.lit_modules.diversify.molecules.molecule_optimization",
    "triptych.lit_modules.commune.thought_adapter",
    "triptych.lit_modules.commune.thought_autoencoder",
)


def preload(names: Sequence[str] = PRELOADED) -> None:
    """Import what runs need, before anything is forked."""
    os.environ["PYTHONPATH"] = os.pathsep.join(
        filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])
    )
    for name in names:
        importlib.import_module(name)


@dataclass
class Forked:
    """A process of the campaign.

    Attributes:
        pid: Its process id.
        streams: Folder of its ``stdout`` and ``stderr``.
        code: Its exit code, negative for a signal; None while it runs.
    """

    pid: int
    streams: Path
    code: int | None = None

    def wait(self, timeout_s: float) -> int | None:
        """Return the exit code; None if the process had to be killed after that time."""
        deadline = time.monotonic() + timeout_s
        while self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
            elif time.monotonic() > deadline:
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
                return None
            else:
                time.sleep(0.005)
        return self.code

    @property
    def err(self) -> str:
        """What the process wrote to stderr."""
        return (self.streams / "stderr").read_text(errors="replace")


def fork(call: Callable[[], object], folder: Path, name: str) -> Forked:
    """Run a function in a fork, in a folder.

    Args:
        call: The function; its `SystemExit` is the exit code, and any other error is 99.
        folder: Working directory.
        name: Name of the folder with the streams, inside.
    """
    streams = folder / "streams" / name
    streams.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Forked(pid, streams)
    code = 70
    try:
        for number, stream in ((1, "stdout"), (2, "stderr")):
            descriptor = os.open(streams / stream, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(descriptor, number)
        os.chdir(folder)
        try:
            call()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 99
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def start_run(
    words: Sequence[object], folder: Path, name: str, before: Callable[[], object] | None = None
) -> Forked:
    """Start ``triptych WORDS`` in a folder.

    Args:
        words: Words of the command line.
        folder: Working directory.
        name: Name of its streams.
        before: Called in the process before the run, to plant a fault.
    """

    def call() -> None:
        from triptych.cli import run

        sys.argv = ["triptych", *map(str, words)]
        if before is not None:
            before()
        run()

    folder.mkdir(parents=True, exist_ok=True)
    return fork(call, folder, name)


def message_of(err: str) -> str:
    """Return the message of a run that ended with an error, else its last line."""
    if "\nerror: " in err:
        return err.rpartition("\nerror: ")[2].partition("\n(TRIPTYCH_DEBUG")[0][:500]
    lines = [line for line in err.strip().splitlines() if line.strip()]
    return lines[-1][:300] if lines else ""
