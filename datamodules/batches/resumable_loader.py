"""The training loader: its state records the batches trained on, so that a run resumes exactly.

Lightning asks the loader for its state whenever it saves a checkpoint. By then workers have
prefetched further batches, and accumulated gradients may still wait for their optimizer step; those
are lost with the process. The state is therefore the cursor after the last batch that an optimizer
step has used. Resuming rewinds Lightning's batch count to it.
"""

import os
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from triptych.datamodules.batches.row_stream import Cursor, RowStream

# Makes a batch of planned rows, of the kind that the stream yields.
Collate = Callable[[list[Any]], Any]


@dataclass(frozen=True)
class Shard:
    """The share of one process in a global batch.

    Row `rank * batch_size + j` of a global batch is row j of the batch of process `rank`. Several
    processes thus see the same rows as a single one with the global batch size.
    """

    rank: int = 0
    world_size: int = 1

    def rows(self, batch_size: int) -> slice:
        """Return this process's rows of a global batch."""
        return slice(self.rank * batch_size, (self.rank + 1) * batch_size)


class _Batches(IterableDataset[tuple[Any, Cursor]]):
    """Batches of one process, each with the cursor after its global batch.

    Worker w of N reads batches w, w + N, ...; the loader takes from the workers in turn, so their
    number does not change the order. Rows of other processes are skipped unread.
    """

    def __init__(
        self,
        stream: RowStream[Any],
        cursor: Cursor | None,
        collate: Collate,
        batch_size: int,
        shard: Shard,
    ) -> None:
        self._stream = stream
        self._cursor = cursor
        self._collate = collate
        self._batch_size = batch_size
        self._shard = shard

    def __iter__(self) -> Iterator[tuple[Any, Cursor]]:
        worker = get_worker_info()
        turn, num_workers = (worker.id, worker.num_workers) if worker else (0, 1)
        planned = self._stream.read(self._cursor)
        number = 0
        while True:
            rows = list(islice(planned, self._batch_size * self._shard.world_size))
            if number % num_workers == turn:
                own = [row for row, _ in rows[self._shard.rows(self._batch_size)]]
                yield self._collate(own), rows[-1][1]
            number += 1


class ResumableLoader:
    """Batches from an endless stream, in epochs of a fixed number of batches.

    Every `iter` continues where the last one stopped. An epoch ends after each multiple of
    `len(self)` batches.

    Args:
        stream: The rows.
        collate: Makes a batch of the rows of this process.
        batch_size: Rows per process and batch.
        rows_per_epoch: Rows of all processes in one epoch; an epoch has at least one batch.
        shard: The share of this process.
        num_workers: Worker processes, at most `stream.max_workers`; 0: this process reads.
        trainer: Its progress tells which batches were trained on; None: all that were yielded.
    """

    def __init__(
        self,
        stream: RowStream[Any],
        collate: Collate,
        *,
        batch_size: int,
        rows_per_epoch: int,
        shard: Shard | None = None,
        num_workers: int = 0,
        trainer: Trainer | None = None,
    ) -> None:
        self._stream = stream
        self._collate = collate
        self._batch_size = batch_size
        self._shard = shard or Shard()
        self._num_workers = min(num_workers, stream.max_workers or num_workers)
        self._trainer = trainer
        self._global_batch_size = batch_size * self._shard.world_size
        self._num_batches = max(1, rows_per_epoch // self._global_batch_size)
        self._yielded = 0
        # Cursors by the number of batches before them, since the last optimizer step.
        self._cursors: dict[int, Cursor | None] = {0: None}
        # Batches yielded before the trainer began to count.
        self._uncounted = 0
        self._iterator: Any = None  # the name by which Lightning shuts workers down

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Any]:
        if self._has_ended():
            return
        self._uncounted = self._yielded - self._counted()
        end = (self._yielded // self._num_batches + 1) * self._num_batches
        while self._yielded < end:
            if self._iterator is None:
                self._iterator = self._start()
            batch, cursor = next(self._iterator)
            self._yielded += 1
            self._cursors[self._yielded] = cursor
            trained = self._trained()
            self._cursors = {n: c for n, c in self._cursors.items() if n >= trained}
            yield batch

    def state_dict(self) -> dict[str, Any]:
        """Return the number of batches trained on, and the cursor after them."""
        trained = self._trained()
        return {
            "batches": trained,
            "cursor": self._cursors[trained],
            "batches_without_step": self._batches_without_step(),
            "global_batch_size": self._global_batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            ValueError: if the number of rows per global batch has changed.
        """
        if state["global_batch_size"] != self._global_batch_size:
            raise ValueError(
                f"the checkpoint was trained with {state['global_batch_size']} rows per batch over "
                f"all processes, this run has {self._global_batch_size}: set data.batch_size so "
                f"that batch_size times processes is {state['global_batch_size']}, or start a new "
                "run from the exported model"
            )
        self._yielded = state["batches"]
        self._cursors = {self._yielded: state["cursor"]}
        self._iterator = None
        if self._trainer is not None:
            self._rewind(state["batches_without_step"])

    def _start(self) -> Iterator[tuple[Any, Cursor]]:
        batches = _Batches(
            self._stream,
            self._cursors[self._yielded],
            self._collate,
            self._batch_size,
            self._shard,
        )
        return iter(
            DataLoader(
                batches,
                batch_size=None,
                collate_fn=_as_it_is,
                num_workers=self._num_workers,
                pin_memory=torch.cuda.is_available(),
                worker_init_fn=_init_worker,
                generator=torch.Generator().manual_seed(0),  # leaves the global generator alone
            )
        )

    def _has_ended(self) -> bool:
        """Whether Lightning, resuming from the end of an epoch, would continue that epoch."""
        if self._trainer is None:
            return False
        progress = self._progress(self._trainer)
        return bool(progress.current.ready >= self._trainer.num_training_batches)

    def _counted(self) -> int:
        """Batches that the trainer has run forward and backward, in this and earlier processes."""
        if self._trainer is None:
            return self._yielded
        return int(self._progress(self._trainer).total.processed)

    def _batches_without_step(self) -> int:
        """Batches with gradients that still wait for their optimizer step (accumulation)."""
        if self._trainer is None:
            return 0
        progress = self._progress(self._trainer)
        if progress.is_last_batch or progress.current.processed >= self._num_batches:
            return 0  # the last batch of an epoch always steps
        return int(progress.current.processed) % self._trainer.accumulate_grad_batches

    def _trained(self) -> int:
        return self._counted() + self._uncounted - self._batches_without_step()

    def _rewind(self, num_batches: int) -> None:
        """Subtract from Lightning's counts the batches with gradients lost with the process."""
        if num_batches == 0 or self._trainer is None:
            return
        # The counts are those of `on_train_batch_end` of the last batch that stepped: `completed`
        # and the loggers' step count do not include that batch yet.
        progress = self._progress(self._trainer)
        for tracker in (progress.total, progress.current):
            tracker.processed -= num_batches
            tracker.ready = tracker.started = tracker.processed
            tracker.completed = tracker.processed - 1
        self._trainer.fit_loop.epoch_loop._batches_that_stepped -= 1

    @staticmethod
    def _progress(trainer: Trainer) -> Any:
        # Any: Lightning declares a tracker class without `processed`, and sets one with it.
        return trainer.fit_loop.epoch_loop.batch_progress


def _as_it_is(item: Any) -> Any:
    return item


def _init_worker(_worker_id: int) -> None:
    # Ctrl-C reaches all processes of a terminal. The main process ends the step in progress first.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
