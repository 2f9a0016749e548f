"""Worker processes that score molecules with a time limit, so that no molecule can stop a run.

RDKit and docking programs crash or hang on single molecules. Such a worker is killed and replaced,
and the molecule has no score but an error. A batch that kills its worker is cut in two until the
molecule is found.

An objective with a component of batches gets tasks of several molecules, others of one. Fast tasks
(milliseconds) are queued in the workers' pipes, so that workers never wait for the main process.
Slow ones are assigned one by one to free workers.
"""

import math
import signal
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from typing import Any

from triptych.models.host.parent_process import end_with_parent
from triptych.objectives.rewards.base import FatalRewardError
from triptych.objectives.rewards.molecules.objective import MoleculeObjective, MoleculeScore

Task = tuple[int, ...]  # indices of the molecules that are scored together

# The time limit of a worker's first molecule includes its imports.
START_S = 120.0
# The queue of a worker: some seconds of work, and never more than fits into a pipe, since both
# sides would block on a full pipe.
_AHEAD_S, _MOST_AHEAD, _MOST_CHARACTERS_AHEAD = 0.25, 64, 2**14


@dataclass
class _Worker:
    process: Any
    connection: Connection
    held: deque[Task] = field(default_factory=deque)  # the worker is at the first
    deadline: float = 0.0  # of the first held task
    is_started: bool = False


class ScoringPool:
    """Worker processes, started at first use and kept for the whole run.

    Args:
        objective: The picklable objective.
        num_workers: Processes; 0 scores in this process, without a time limit.
        time_limit_s: Seconds per molecule; a batch has those of all its molecules.

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
        self._seconds = math.inf  # recent time per task
        self._is_prepared = False  # in this process

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_workers": [], "_is_prepared": False}

    def score(
        self, smiles: Sequence[str], batch_size: int | None = None
    ) -> Generator[tuple[int, MoleculeScore], None, None]:
        """Score molecules. Workers start at once, before the first result is requested.

        Args:
            smiles: Canonical SMILES.
            batch_size: Most molecules of a task; null: that of the objective.

        Returns:
            Index and score of each, in the order of completion. Closing the iterator, or scoring
            other molecules, cancels the rest.

        Raises:
            FatalRewardError: From the iterator, if a component cannot be prepared.
        """
        tasks = self._tasks(len(smiles), batch_size or self.objective.batch_size)
        if self.num_workers == 0:
            return self._scored_here(tasks, smiles)
        self._give_up()
        self._hand_out(tasks, smiles)
        return self._scored_by_workers(tasks, smiles)

    def _tasks(self, count: int, size: int) -> deque[Task]:
        """Divide molecules into tasks, so that every worker gets one."""
        size = max(1, min(size, -(-count // max(1, self.num_workers))))
        return deque(tuple(range(i, min(i + size, count))) for i in range(0, count, size))

    def _scored_here(
        self, tasks: deque[Task], smiles: Sequence[str]
    ) -> Generator[tuple[int, MoleculeScore], None, None]:
        if not self._is_prepared:
            try:
                self.objective.prepare()
            except Exception as error:
                raise _not_prepared(f"{type(error).__name__}: {error}") from error
            self._is_prepared = True
        for task in tasks:
            results = _scored(self.objective, [smiles[index] for index in task])
            yield from zip(task, results, strict=True)

    def _scored_by_workers(
        self, waiting: deque[Task], smiles: Sequence[str]
    ) -> Generator[tuple[int, MoleculeScore], None, None]:
        num_left = len(smiles)
        try:
            while num_left:
                self._hand_out(waiting, smiles)
                for index, result in self._finished(waiting):
                    num_left -= 1
                    yield index, result
        finally:
            self._give_up()

    def start(self) -> None:
        """Start all workers and wait for their imports.

        Otherwise workers start when there are molecules for them.

        Raises:
            RuntimeError: If one fails to start.
            FatalRewardError: If a component cannot be prepared.
        """
        while len(self._workers) < self.num_workers:
            self._start()
        for worker in self._workers:
            if not worker.is_started:
                if not worker.connection.poll(START_S):
                    raise RuntimeError(f"a scoring process did not start within {START_S:g} s")
                message = worker.connection.recv()
                if message is not None:
                    raise _not_prepared(message)
                worker.is_started = True

    def close(self) -> None:
        """Stop all workers; they restart at the next use."""
        for worker in list(self._workers):
            self._end(worker)

    def _hand_out(self, waiting: deque[Task], smiles: Sequence[str]) -> None:
        num_busy = sum(bool(worker.held) for worker in self._workers)
        while len(self._workers) < min(self.num_workers, len(waiting) + num_busy):
            self._start()
        for worker in sorted(self._workers, key=lambda worker: len(worker.held)):
            if not worker.held and waiting:
                self._send(worker, waiting.popleft(), smiles)
        if not waiting:
            return
        share = -(-len(waiting) // self.num_workers)
        most = min(_MOST_AHEAD, share, int(_AHEAD_S / self._seconds))
        for worker in self._workers:
            characters = sum(_length(task, smiles) for task in worker.held)
            while waiting and len(worker.held) <= most:
                characters += _length(waiting[0], smiles)
                if characters > _MOST_CHARACTERS_AHEAD:
                    break
                self._send(worker, waiting.popleft(), smiles)

    def _send(self, worker: _Worker, task: Task, smiles: Sequence[str]) -> None:
        worker.held.append(task)
        if len(worker.held) == 1:
            worker.deadline = self._deadline(worker)
        try:
            worker.connection.send([smiles[index] for index in task])
        except OSError:  # it has died; `_finished` notices
            worker.deadline = time.monotonic()

    def _deadline(self, worker: _Worker) -> float:
        """When the first held task has to be finished."""
        count = len(worker.held[0]) if worker.held else 1
        return time.monotonic() + count * self.time_limit_s + (0 if worker.is_started else START_S)

    def _finished(self, waiting: deque[Task]) -> Iterator[tuple[int, MoleculeScore]]:
        """Wait for a worker's result, end or time limit; yield the scores, or errors."""
        busy = [worker for worker in self._workers if worker.held]
        soonest = min(worker.deadline for worker in busy)
        ready = wait([worker.connection for worker in busy], max(0.0, soonest - time.monotonic()))
        for worker in busy:
            if worker.connection in ready:
                try:
                    message = worker.connection.recv()
                except (EOFError, OSError):
                    yield from self._replaced(worker, waiting, "its worker process died")
                    continue
                if isinstance(message, str):
                    self._end(worker)
                    raise _not_prepared(message)
                if message is None:  # imports are done: the task's time starts here
                    worker.is_started = True
                    worker.deadline = self._deadline(worker)
                else:
                    seconds, results = message
                    self._note(seconds)
                    task = worker.held.popleft()
                    worker.deadline = self._deadline(worker)
                    yield from zip(task, results, strict=True)
            elif time.monotonic() >= worker.deadline:
                limit = len(worker.held[0]) * self.time_limit_s
                yield from self._replaced(worker, waiting, f"it took over {limit:g} s")

    def _note(self, seconds: float) -> None:
        """Track the time per task; a slower one counts at once, so that queues stay short."""
        mean = seconds if math.isinf(self._seconds) else 0.9 * self._seconds + 0.1 * seconds
        self._seconds = max(seconds, mean, 1e-6)

    def _replaced(
        self, worker: _Worker, waiting: deque[Task], why: str
    ) -> list[tuple[int, MoleculeScore]]:
        task = worker.held.popleft()
        waiting.extendleft(reversed(worker.held))  # what is queued behind it is scored by others
        self._end(worker)
        if len(task) == 1:
            return [(task[0], MoleculeScore.failed(why, was_killed=True))]
        half = len(task) // 2
        waiting.extendleft([task[half:], task[:half]])
        return []

    def _give_up(self) -> None:
        """Stop the workers that hold cancelled tasks."""
        for worker in [worker for worker in self._workers if worker.held]:
            self._end(worker)

    def _start(self) -> None:
        context = get_context("spawn")  # forking a process that runs threads may hang
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.objective), daemon=True)
        with without_ctrl_c():
            process.start()
        theirs.close()
        self._workers.append(_Worker(process, ours))

    def _end(self, worker: _Worker) -> None:
        worker.connection.close()
        worker.process.kill()
        worker.process.join()
        self._workers.remove(worker)


@contextmanager
def without_ctrl_c() -> Iterator[None]:
    """Let processes that start within never see Ctrl-C, which reaches all those of a terminal.

    Their parent ends the step in progress, then them.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})  # inherited by processes
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(connection: Connection, objective: MoleculeObjective) -> None:
    """Score incoming molecules until the connection closes, or the parent has ended."""
    if (parent := parent_process()) is not None and parent.pid is not None:
        end_with_parent(parent.pid)  # it keeps the time limits, so nobody else would end a hang
    try:
        objective.prepare()
    except Exception as error:
        connection.send(f"{type(error).__name__}: {error}")
        return
    connection.send(None)
    while True:
        try:
            smiles = connection.recv()
        except (EOFError, OSError, KeyboardInterrupt):
            return
        began = time.monotonic()
        results = _scored(objective, smiles)
        connection.send((time.monotonic() - began, results))


def _length(task: Task, smiles: Sequence[str]) -> int:
    return sum(len(smiles[index]) for index in task)


def _not_prepared(why: str) -> FatalRewardError:
    return FatalRewardError(f"a component of the oracle could not be prepared: {why}")


def _scored(objective: MoleculeObjective, smiles: Sequence[str]) -> list[MoleculeScore]:
    try:
        return objective.scores(smiles)
    except Exception as error:  # a user's component on a model's molecule: anything can happen
        return [MoleculeScore.failed(f"{type(error).__name__}: {error}")] * len(smiles)
