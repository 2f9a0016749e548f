"""A program of any kind as an oracle: it reads SMILES and writes numbers."""

import contextlib
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from triptych.models.diversify.molecules.molecule import Mol
from triptych.objectives.rewards.molecules.batch_answers import SharedAnswers, chosen, read_text
from triptych.objectives.rewards.molecules.component import Failure, MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform

# Characters of the program's last words that are shown.
_SHOWN = 2000
_shared = SharedAnswers()


class ProgramError(RuntimeError):
    """A program that ended with an error or took too long, with what it wrote to stderr."""


class ExternalProcess(MoleculeComponent):
    """Scores molecules by a command, which is started once for a batch.

    It reads SMILES from stdin, one a line, and writes one number a line to stdout, or JSON (see
    `batch_answers.read_json`). A line without a number ("nan", "failed", an empty one) or null is a
    molecule without a score. An exit status other than 0 is a failure of the whole batch, which the
    search tries again in smaller batches, or at which it pauses if the program is down.

    Several components with the same command and different endpoints share each run of the program.

    Args:
        command: The program and its arguments, as one line (split as in a shell, but run without
            one) or as a list. Files that it names count with their content in the ledger.
        endpoint: Name of the result in JSON; null: the only one.
        batch_size: Most molecules of one run of the program.
        timeout_s: Seconds for one run, after which it is ended with all that it started.
        inputs: Further files or folders that decide scores, such as the weights of a network.
        cost_ms: Approximate time per molecule; cheap components are computed first.
        transform: Maps the number to [0, 1]; null: unchanged.
        name: In ledger, logs and tables; null: the endpoint, or `external_process`.

    Raises:
        ValueError: If there is no such program, an input is missing, or a number is out of range.
    """

    def __init__(
        self,
        command: str | list[str],
        endpoint: str | None = None,
        batch_size: int = 64,
        timeout_s: float = 600.0,
        inputs: Sequence[str] = (),
        cost_ms: float = 100.0,
        transform: Transform | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(transform, name)
        if batch_size < 1 or not timeout_s > 0:
            raise ValueError(
                f"batch_size is {batch_size} and timeout_s {timeout_s}: set batch_size to at least "
                "1, timeout_s above 0"
            )
        missing = self.missing_inputs({"command": command, "inputs": inputs})
        if missing:
            raise ValueError("; ".join(missing))
        self.command = _words(command)
        self.endpoint, self.inputs = endpoint, list(inputs)
        self.batch_size, self.timeout_s, self.cost_ms = batch_size, timeout_s, cost_ms

    @classmethod
    def missing_inputs(cls, settings: Mapping[str, Any]) -> list[str]:
        """Say whether the program or one of its inputs is missing."""
        words = _words(settings.get("command") or "")
        if not words:
            return [f"{cls.__name__}.command is empty: give the program and its arguments"]
        missing = []
        if shutil.which(words[0]) is None:
            missing.append(
                f"{cls.__name__}.command begins with {words[0]}, and there is no such program (or "
                "it may not be executed): give its path"
            )
        missing += [
            f"{cls.__name__}.inputs holds {path}, and there is no such file"
            for path in settings.get("inputs") or ()
            if not Path(path).exists()
        ]
        return missing

    @property
    def default_name(self) -> str:
        """The endpoint, or `external_process`."""
        return self.endpoint or super().default_name

    def values(self, molecules: Sequence[Mol], smiles: Sequence[str]) -> list[float | Failure]:
        """Run the program.

        Raises:
            ProgramError: If it ended with an error or took too long.
            ValueError: If its output cannot be read.
        """
        source = tuple(self.command)
        found: list[float | Failure | None] = [*_shared.take(source, self.endpoint, smiles)]
        rows = [row for row, value in enumerate(found) if value is None]
        if rows:
            asked = [smiles[row] for row in rows]
            answers = read_text(self._run(asked), len(asked))
            _shared.keep(source, self.endpoint, asked, answers)
            for row, value in zip(rows, chosen(answers, self.endpoint), strict=True):
                found[row] = value
        return [value for value in found if value is not None]

    def identity(self) -> dict[str, Any]:
        """Return what decides scores; not how molecules are batched, or how long they may take."""
        return super().identity() | {"batch_size": None, "timeout_s": None, "cost_ms": None}

    def _run(self, smiles: Sequence[str]) -> str:
        shown = shlex.join(self.command)
        try:
            process = subprocess.Popen(
                self.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,  # so that all that it starts can be ended with it
            )
        except OSError as error:
            raise ProgramError(f"`{shown}` could not be started: {error}") from error
        try:
            output, words = process.communicate("\n".join(smiles) + "\n", timeout=self.timeout_s)
        except subprocess.TimeoutExpired:
            _end(process)
            _, words = process.communicate()
            raise ProgramError(
                f"`{shown}` took over {self.timeout_s:g} s for {len(smiles)} molecules"
                f"{_last(words)}"
            ) from None
        except BaseException:
            _end(process)
            process.wait()
            raise
        if process.returncode != 0:
            raise ProgramError(f"`{shown}` ended with status {process.returncode}{_last(words)}")
        return output


def _words(command: str | Sequence[str]) -> list[str]:
    return shlex.split(command) if isinstance(command, str) else [str(word) for word in command]


def _end(process: "subprocess.Popen[str]") -> None:
    """End a program and all that it started."""
    with contextlib.suppress(ProcessLookupError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:  # Windows
            process.kill()


def _last(words: str) -> str:
    """Return the end of stderr, which says why."""
    stripped = words.strip()
    return f": {stripped[-_SHOWN:]}" if stripped else ", and wrote nothing to stderr"
