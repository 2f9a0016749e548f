"""Endless batches of documents of similar length, in an order drawn anew for each epoch.

Similar lengths need little padding. The composition of the batches changes in every epoch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from triptych.datamodules.batches.row_stream import Cursor, RowStream

# Documents are sorted by length within pools of this many batches.
BATCHES_PER_POOL = 50


@dataclass(frozen=True, slots=True)
class PlannedDocument:
    """A planned document, not yet read.

    Args:
        index: Index of the document.
        epoch: The epoch it is read in.
    """

    index: int
    epoch: int


class BucketedStream(RowStream[PlannedDocument]):
    """Endless passes over documents; every `batch_size` consecutive rows have similar lengths.

    The order is drawn by (seed, epoch) and cut into pools of 50 batches. Each pool is sorted by
    length and cut into batches, and the batches of the epoch are shuffled. Documents that do not
    fill a batch are left out of that epoch; they are different ones in each epoch.

    Args:
        lengths: Approximate number of tokens of each document.
        batch_size: Rows of a batch of all processes.
        seed: Of the orders.

    Raises:
        ValueError: If there are fewer documents than a batch has rows.
    """

    def __init__(self, lengths: np.ndarray, batch_size: int, seed: int) -> None:
        if len(lengths) < batch_size:
            raise ValueError(
                f"{len(lengths)} molecules to train on do not fill a batch of {batch_size} (over "
                "all processes): lower data.batch_size, or give more molecules"
            )
        self._lengths = lengths
        self._batch_size = batch_size
        self._seed = seed

    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[PlannedDocument, Cursor]]:
        """Yield documents from `cursor` on, each with the cursor after it; see the base class."""
        epoch, first = (cursor["epoch"], cursor["row"]) if cursor else (0, 0)
        while True:
            order = self._order(epoch)
            for row in range(first, len(order)):
                yield PlannedDocument(int(order[row]), epoch), {"epoch": epoch, "row": row + 1}
            epoch, first = epoch + 1, 0

    def num_rows(self) -> int:
        """Return the number of rows in one pass, whole batches only."""
        return len(self._lengths) // self._batch_size * self._batch_size

    def _order(self, epoch: int) -> np.ndarray:
        generator = np.random.default_rng([self._seed, epoch])
        order = generator.permutation(len(self._lengths))[: self.num_rows()]
        size = self._batch_size * BATCHES_PER_POOL
        pools = [order[start : start + size] for start in range(0, len(order), size)]
        sorted_pools = [pool[np.argsort(self._lengths[pool], kind="stable")] for pool in pools]
        batches = np.concatenate(sorted_pools).reshape(-1, self._batch_size)
        return batches[generator.permutation(len(batches))].ravel()
