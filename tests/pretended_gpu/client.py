"""The pretended GPU as tests see it: a process that does what it is told."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.pretended_gpu.wait_counter import Wait
from triptych import ROOT


class FailedOnGPUError(AssertionError):
    """A job failed on the pretended GPU."""


@dataclass(frozen=True)
class RunOnGPU:
    """A run of the command line.

    Attributes:
        path: Its directory, absolute.
        summary: Content of its `summary.json`.
        waits: Waits of the counted step.
    """

    path: Path
    summary: dict[str, Any]
    waits: Counter[Wait]

    @property
    def checkpoint(self) -> Path:
        """The last checkpoint."""
        return self.path / "checkpoints" / "last.ckpt"


class PretendedGPU:
    """A process with the pretended GPU (server.py); its errors go to a log file.

    Args:
        library: The built guard.
        folder: Where runs without a folder of their own, and the log, are.
    """

    def __init__(self, library: Path, folder: Path) -> None:
        self.folder = folder
        self._log = (folder / "server.log").open("w")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.pretended_gpu.server", str(library)],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )

    def call(self, function: str) -> Any:
        """Call `module:function` there and return its value, which has to fit into JSON."""
        return self._ask({"call": function})["value"]

    def save_stand_ins(self, folder: Path) -> None:
        """Write the files that the tiny experiments name (stand_ins.py) into a folder."""
        self._ask({"call": "tests.pretended_gpu.stand_ins:save_all", "folder": str(folder)})

    def run(
        self, folder: Path, *words: object, counted_step: int | None = None, log: Path | None = None
    ) -> RunOnGPU:
        """Run the command line there.

        Args:
            folder: Working directory.
            words: As after `python train.py`.
            counted_step: Number of the step whose waits are counted.
            log: What the run prints; null: `output.log` in the folder.

        Raises:
            FailedOnGPUError: with the traceback, if the run fails.
        """
        job = {"words": list(map(str, words)), "folder": str(folder), "counted_step": counted_step}
        job["log"] = str(log or folder / "output.log")
        answer = self._ask(job)
        waits = Counter({Wait(*wait): number for *wait, number in answer["waits"]})
        return RunOnGPU(Path(answer["run"]), answer["summary"], waits)

    def close(self) -> None:
        """End the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(timeout=60)
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._log.close()

    def _ask(self, job: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        line = self._process.stdout.readline()
        if not line:
            log = (self.folder / "server.log").read_text()[-4000:]
            raise FailedOnGPUError(f"the process with the pretended GPU ended:\n{log}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise FailedOnGPUError(f"on the pretended GPU: {answer['traceback']}")
        return answer
