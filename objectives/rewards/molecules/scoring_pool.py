"""Molecules scored by worker processes, each with a time limit: none can stop a run.

RDKit and docking programs crash or hang on single molecules. A worker that does is ended and
replaced; the molecule scores zero and is named in the log.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from typing import Any

from objectives.rewards.molecules.objective import MoleculeObjective, MoleculeScore

logger = logging.getLogger(__name__)

# A worker's first molecule waits for its imports too.
START_S = 120.0


@dataclass
class _Worker:
    process: Any
    connection: Connection
    index: int | None = None  # of the molecule it works on
    deadline: float = 0.0
    is_started: bool = False


class ScoringPool:
    """Worker processes, started when first needed and kept for the whole run.

    Args:
        objective: What scores; it must pickle.
        num_workers: Processes; 0 scores in this one, without a time limit.
        time_limit_s: Seconds a molecule may take.

    Raises:
        ValueError: If a number is out of range.
    """

    def __init__(self, objective: MoleculeObjective, num_workers: int, time_limit_s: float) -> None:
        if num_workers < 0:
            raise ValueError(f"num_workers is {num_workers}: set it to at least 0")
        if not time_limit_s > 0:
            raise ValueError(f"time_limit_s is {time_limit_s}: set it above 0")
        self.objective = objective
        self.num_workers = num_workers
        self.time_limit_s = time_limit_s
        self._workers: list[_Worker] = []
        self._is_prepared = False  # in this process

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_workers": [], "_is_prepared": False}

    def score(self, smiles: Sequence[str]) -> Iterator[tuple[int, MoleculeScore]]:
        """Score molecules.

        Args:
            smiles: Canonical SMILES.

        Yields:
            Index and score of each, as they come.
        """
        if self.num_workers == 0:
            if not self._is_prepared:
                self.objective.prepare()
                self._is_prepared = True
            for index, text in enumerate(smiles):
                result = _scored(self.objective, text)
                _log_failure(text, result)
                yield index, result
            return
        waiting = deque(range(len(smiles)))
        num_left = len(smiles)
        try:
            while num_left:
                self._hand_out(waiting, smiles)
                for worker, result in self._finished():
                    assert worker.index is not None
                    index, worker.index = worker.index, None
                    _log_failure(smiles[index], result)
                    num_left -= 1
                    yield index, result
        finally:
            for worker in [worker for worker in self._workers if worker.index is not None]:
                self._end(worker)  # what it works on was given up

    def start(self) -> None:
        """Start all workers and wait until they have imported what they need.

        Without it workers start when there are molecules for them.

        Raises:
            RuntimeError: If one does not come up.
        """
        while len(self._workers) < self.num_workers:
            self._start()
        for worker in self._workers:
            if not worker.is_started:
                if not worker.connection.poll(START_S):
                    raise RuntimeError(f"a scoring process did not start within {START_S:g} s")
                worker.connection.recv()
                worker.is_started = True

    def close(self) -> None:
        """End all workers; they are started anew when needed."""
        for worker in list(self._workers):
            self._end(worker)

    def _hand_out(self, waiting: deque[int], smiles: Sequence[str]) -> None:
        while len(self._workers) < min(self.num_workers, len(waiting) + self._num_busy()):
            self._start()
        for worker in self._workers:
            if worker.index is None and waiting:
                worker.index = waiting.popleft()
                limit = self.time_limit_s + (0 if worker.is_started else START_S)
                worker.deadline = time.monotonic() + limit
                try:
                    worker.connection.send(smiles[worker.index])
                except OSError:  # it died since; its end is noticed in `_finished`
                    worker.deadline = time.monotonic()

    def _finished(self) -> Iterator[tuple[_Worker, MoleculeScore]]:
        """Wait for something to happen to a worker; yield what it scored, or zero."""
        busy = [worker for worker in self._workers if worker.index is not None]
        soonest = min(worker.deadline for worker in busy)
        ready = wait([worker.connection for worker in busy], max(0.0, soonest - time.monotonic()))
        for worker in busy:
            if worker.connection in ready:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    yield self._replaced(worker, "its worker process died")
                    continue
                if message is None:  # imports are done: from here on the molecule's time counts
                    worker.is_started = True
                    worker.deadline = time.monotonic() + self.time_limit_s
                else:
                    yield worker, message
            elif time.monotonic() >= worker.deadline:
                yield self._replaced(worker, f"it took over {self.time_limit_s:g} s")

    def _replaced(self, worker: _Worker, why: str) -> tuple[_Worker, MoleculeScore]:
        self._end(worker)
        return worker, MoleculeScore(0.0, error=why)

    def _num_busy(self) -> int:
        return sum(worker.index is not None for worker in self._workers)

    def _start(self) -> None:
        context = get_context("spawn")  # forking a process that runs threads may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.objective), daemon=True)
        process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _end(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        self._workers.remove(worker)


def _serve(connection: Connection, objective: MoleculeObjective) -> None:
    """Score what comes until the other side is gone."""
    objective.prepare()
    connection.send(None)
    while True:
        try:
            smiles = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        connection.send(_scored(objective, smiles))


def _log_failure(smiles: str, result: MoleculeScore) -> None:
    if result.error is not None:
        logger.warning("%s scores 0: %s", smiles, result.error)


def _scored(objective: MoleculeObjective, smiles: str) -> MoleculeScore:
    try:
        return objective.score(smiles)
    except Exception as error:  # a user's component on a model's molecule: anything can happen
        return MoleculeScore(0.0, error=f"{type(error).__name__}: {error}")
