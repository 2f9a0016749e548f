"""The training loader: its state says what was trained on, so a run goes on exactly there.

Lightning asks the loader for its state whenever it saves a checkpoint. By then workers have
prefetched further batches, and gradients of the last few may still be waiting for their optimizer
step; those are lost with the process. The state is therefore the cursor after the last batch
*whose gradients reached the parameters*, and resuming rewinds Lightning's own count to it.
"""

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from triptych.datamodules.batches.row_stream import Cursor, PlannedRow, RowStream

Batch = dict[str, Any]
Collate = Callable[[list[PlannedRow]], Batch]


@dataclass(frozen=True)
class Shard:
    """Which rows of a global batch belong to one process.

    Row `rank * batch_size + j` of a global batch is row j of that process's batch, so that several
    processes see exactly the rows of one process with as many times the batch.
    """

    rank: int = 0
    world_size: int = 1

    def rows(self, batch_size: int) -> slice:
        """Return this process's rows of a global batch."""
        return slice(self.rank * batch_size, (self.rank + 1) * batch_size)


class _Batches(IterableDataset):
    """Batches of one process, each with the cursor after its global batch.

    Worker w of N reads batches w, w + N, ...; the loader takes from the workers in turn, so their
    number does not change the order. Rows of others are passed over without reading them.
    """

    def __init__(
        self,
        stream: RowStream,
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

    def __iter__(self) -> Iterator[tuple[Batch, Cursor]]:
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

    Every `iter` goes on where the last one stopped; an epoch ends after each multiple of
    `len(self)` batches.

    Args:
        stream: The rows.
        collate: Makes a batch of this process's rows.
        batch_size: Rows per process and batch.
        rows_per_epoch: Rows of all processes in one epoch; at least one batch is made of them.
        shard: This process's part.
        num_workers: Worker processes, as far as the stream allows; 0 reads in this one.
        trainer: Whose progress decides what was trained on; without one, all that was yielded was.
    """

    def __init__(
        self,
        stream: RowStream,
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
        # Cursors after the last batches, by number of batches: back to the last optimizer step.
        self._cursors: dict[int, Cursor | None] = {0: None}
        # Batches this loader yielded before the trainer began to count.
        self._uncounted = 0
        self._iterator: Any = None  # the name by which Lightning shuts workers down

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
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
        """Return where training stands: batches trained on, and the cursor after them."""
        trained = self._trained()
        return {
            "batches": trained,
            "cursor": self._cursors[trained],
            "batches_without_step": self._batches_without_step(),
            "global_batch_size": self._global_batch_size,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken.

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

    def _start(self) -> Iterator[tuple[Batch, Cursor]]:
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
        """Whether Lightning, resuming from the end of an epoch, is about to run that epoch on."""
        if self._trainer is None:
            return False
        progress = self._trainer.fit_loop.epoch_loop.batch_progress
        return progress.current.ready >= self._trainer.num_training_batches

    def _counted(self) -> int:
        """Batches which the trainer has run forward and backward, in this and earlier processes."""
        if self._trainer is None:
            return self._yielded
        return self._trainer.fit_loop.epoch_loop.batch_progress.total.processed

    def _batches_without_step(self) -> int:
        """Batches whose gradients still wait for their optimizer step (gradient accumulation)."""
        if self._trainer is None:
            return 0
        progress = self._trainer.fit_loop.epoch_loop.batch_progress
        if progress.is_last_batch or progress.current.processed >= self._num_batches:
            return 0  # the last batch of an epoch always steps
        return progress.current.processed % self._trainer.accumulate_grad_batches

    def _trained(self) -> int:
        return self._counted() + self._uncounted - self._batches_without_step()

    def _rewind(self, num_batches: int) -> None:
        """Take from Lightning's counts the batches whose gradients were lost with the process."""
        if num_batches == 0:
            return
        # As they stood in `on_train_batch_end` of the last batch that stepped: counted but for
        # `completed`, and its step not yet counted for the loggers.
        loop = self._trainer.fit_loop.epoch_loop
        for tracker in (loop.batch_progress.total, loop.batch_progress.current):
            tracker.processed -= num_batches
            tracker.ready = tracker.started = tracker.processed
            tracker.completed = tracker.processed - 1
        loop._batches_that_stepped -= 1


def _as_it_is(item: Any) -> Any:
    return item


def _init_worker(_worker_id: int) -> None:
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
