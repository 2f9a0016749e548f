"""Validation batches: each row is read once, on any number of processes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from triptych.datamodules.batches.packing import IGNORED_LABEL
from triptych.datamodules.batches.resumable_loader import Shard


@dataclass(frozen=True)
class Evaluation:
    """A validation set: a number of rows and a function that makes batches of them.

    Args:
        name: Names the log keys `val/<name>/...`.
        num_rows: Number of rows.
        collate: Makes a batch (see `packing.collate_rows`) of the rows with the given indices.
            Question answering adds its keys; per-row lists must be as long as the batch.
    """

    name: str
    num_rows: int
    collate: Callable[[Sequence[int]], dict[str, Any]]


class EvaluationLoader:
    """Batches of an evaluation, sharded over processes; no row is read twice.

    Every process gets equally many batches of equally many rows, as collectives need. *Fillers*
    complete the last batches: copies of the last row with every label -100 and, for questions, no
    accepted answer (`answers[i] == []`). Leave those out of every metric.

    Args:
        evaluation: The validation set.
        batch_size: Rows per process and batch.
        shard: The share of this process.
    """

    def __init__(self, evaluation: Evaluation, batch_size: int, shard: Shard) -> None:
        self._evaluation = evaluation
        self._batch_size = batch_size
        self._shard = shard

    @property
    def name(self) -> str:
        """The evaluation's name."""
        return self._evaluation.name

    def __len__(self) -> int:
        return -(-self._evaluation.num_rows // (self._batch_size * self._shard.world_size))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        last = self._evaluation.num_rows - 1
        global_batch_size = self._batch_size * self._shard.world_size
        for number in range(len(self)):
            batch_rows = range(number * global_batch_size, (number + 1) * global_batch_size)
            if self._shard.world_size == 1:  # a single process needs no fillers
                batch_rows = range(batch_rows.start, min(batch_rows.stop, last + 1))
            own = batch_rows[self._shard.rows(self._batch_size)]
            batch = self._evaluation.collate([min(row, last) for row in own])
            for place, row in enumerate(own):
                if row > last:
                    batch["labels"][place] = IGNORED_LABEL
                    if "answers" in batch:
                        batch["answers"][place] = []
            yield batch | {"name": self.name}
