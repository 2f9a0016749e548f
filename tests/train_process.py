"""`python train.py ...` in processes of its own that need not import everything anew.

Importing torch, Lightning and the rest takes a process several seconds. Here a server imports them
once for all tests of a pytest worker, and each process is forked from it: it has its own process
id, environment, folder and exit code, and runs `train.py` as its main module. What Python's start
itself, or Lightning's own launcher of processes, might do differently is left to the tests that
call `python train.py` by name.
"""

import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
from dataclasses import dataclass
from multiprocessing import forkserver
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

from triptych import ROOT

# What runs import only once they are composed.
IMPORTED = (
    "train",
    "datasets",
    "matplotlib.figure",
    "matplotlib.backends.backend_agg",
    "triptych.lit_modules.remember.continual_finetuning",
    "triptych.lit_modules.remember.memory_pretraining",
    "triptych.datamodules.remember.facts.fact_stream",
    "triptych.datamodules.remember.text.text_and_facts",
    "transformers.models.llama.modeling_llama",
)
CONTEXT = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class TrainProcess:
    """A running `train.py`.

    Attributes:
        process: The process.
        streams: Folder of its `stdout` and `stderr`.
    """

    process: BaseProcess
    streams: Path

    def wait(self, timeout_s: float = 300) -> int:
        """Return the exit code, negative for a signal."""
        self.process.join(timeout_s)
        if self.process.exitcode is None:
            self.process.kill()
            raise TimeoutError(f"train.py took more than {timeout_s} s")
        return self.process.exitcode

    def stdout(self) -> str:
        return (self.streams / "stdout").read_text()

    def stderr(self) -> str:
        return (self.streams / "stderr").read_text()


def start_server() -> None:
    """Let processes be forked with the imports done, also those that Lightning starts so."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        CONTEXT.set_forkserver_preload(list(IMPORTED))
        forkserver.ensure_running()


def start_train(folder: Path, *words: object, **environment: str) -> TrainProcess:
    """Start `train.py` with these words, in a folder and with more variables of environment."""
    streams = Path(tempfile.mkdtemp(prefix="streams-", dir=folder))
    start_server()
    environment = {**os.environ, **environment}
    process = CONTEXT.Process(
        target=_train, args=(folder, streams, list(map(str, words)), environment)
    )
    process.start()
    return TrainProcess(process, streams)


def run_train(folder: Path, *words: object) -> TrainProcess:
    """Run `train.py` with these words to its end, which has to be a good one."""
    running = start_train(folder, *words)
    assert running.wait() == 0, running.stderr()
    return running


def run_train_on_two(folder: Path, *words: object) -> None:
    """Run the two processes of a distributed training to their end, started as torchrun does."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2"}
    both = [
        start_train(folder, *words, NODE_RANK="0", LOCAL_RANK=str(rank), **address)
        for rank in range(2)
    ]
    codes = [running.wait() for running in both]
    assert codes == [0, 0], "\n".join(running.stderr() for running in both)


def _train(folder: Path, streams: Path, words: list[str], environment: dict[str, str]) -> None:
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        with (streams / name).open("w") as file:
            stream.flush()
            os.dup2(file.fileno(), stream.fileno())
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    # Workers of a data loader start as in any process; this one knows only how it was started.
    multiprocessing.set_start_method(None, force=True)
    from lightning.pytorch.utilities.rank_zero import rank_zero_only

    # Read from the environment when it was imported, which was in the server.
    rank_zero_only.rank = int(environment.get("LOCAL_RANK", "0"))
    sys.argv = [str(ROOT / "train.py"), *words]
    runpy.run_path(sys.argv[0], run_name="__main__")
