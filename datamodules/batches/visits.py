"""Items taught one after another: a visit to an item reads all its documents.

    items to teach (facts, chunks of documents), each with its documents    `VisitSource`
      -> visits of a few items, in an order drawn anew for each pass        `VisitStream`
      -> batches of one document a row, padded and never packed             `VisitCollate`

Sparse Memory Finetuning teaches this way (2510.15103, section 5: one fact a batch, 64 paraphrases,
each padded). Packing would let a token be predicted from the paraphrase before it in the row.

Shapes: B rows, T longest document of the batch.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.packing import Document
from triptych.datamodules.batches.resumable_loader import Shard
from triptych.datamodules.batches.row_stream import Cursor, RowStream


class VisitSource(ABC):
    """A finite set of items to teach, each with the documents of one visit.

    `documents(index, pass_number)` must be a pure function of (the source's seed, index,
    pass_number), as for `packing.DocumentSource`. Sources are sent to loader workers, so they must
    pickle.

    Attributes:
        ids: Names of the items in batches, reports and ledgers.
    """

    ids: list[str]

    @abstractmethod
    def documents(self, index: int, pass_number: int) -> list[Document]:
        """Return the documents of item `index` in one pass: one or more, at most T tokens each."""


@dataclass(frozen=True, slots=True)
class PlannedVisit:
    """A planned batch of all processes, not yet read.

    Args:
        number: Number of the visit, counted over all passes; batches that repeat it share it.
        pass_number: Number of its pass over the items.
        items: Indices of the items visited together.
    """

    number: int
    pass_number: int
    items: tuple[int, ...]


class VisitStream(RowStream[PlannedVisit]):
    """An endless stream of visits, pass after pass over the items.

    Visit `pass * visits_per_pass + position` holds the next `items_per_visit` items of that pass
    (the last visit of a pass may hold fewer). It is yielded `steps_per_visit` times in a row.

    Args:
        num_items: Number of items.
        items_per_visit: Items visited together, over all processes.
        steps_per_visit: Consecutive batches that repeat a visit.
        shuffle: Draw the order of each pass by `seed`; otherwise keep the order of the items.
        seed: Seed of the orders.

    Raises:
        ValueError: if a visit has no items or no steps: the stream would then never yield.
    """

    def __init__(
        self, num_items: int, items_per_visit: int, steps_per_visit: int, shuffle: bool, seed: int
    ) -> None:
        if min(items_per_visit, steps_per_visit) < 1:
            raise ValueError(
                f"a visit has {items_per_visit} items and {steps_per_visit} steps: set both to at "
                "least 1"
            )
        self._num_items = num_items
        self._items_per_visit = items_per_visit
        self._steps_per_visit = steps_per_visit
        self._shuffle = shuffle
        self._seed = seed
        self.visits_per_pass = -(-num_items // items_per_visit)

    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[PlannedVisit, Cursor]]:
        """Yield visits from `cursor` on, each with the cursor after it; see the base class."""
        number, step = (cursor["visit"], cursor["step"]) if cursor else (0, 0)
        while True:
            pass_number, position = divmod(number, self.visits_per_pass)
            order = self._order(pass_number)
            for place in range(position, self.visits_per_pass):
                items = order[place * self._items_per_visit :][: self._items_per_visit]
                visit = PlannedVisit(number, pass_number, items)
                for done in range(step + 1, self._steps_per_visit + 1):
                    yield visit, {"visit": number, "step": done}
                number, step = number + 1, 0

    def num_rows(self) -> int:
        """Return the number of batches in one pass."""
        return self.visits_per_pass * self._steps_per_visit

    def _order(self, pass_number: int) -> tuple[int, ...]:
        if not self._shuffle:
            return tuple(range(self._num_items))
        generator = np.random.default_rng([self._seed, pass_number])
        return tuple(generator.permutation(self._num_items).tolist())


class VisitCollate:
    """Makes the batch of a visit on this process.

    The documents of a visit are distributed over the processes in turn, so several processes learn
    from the same documents as one. With fewer documents than processes, some processes read the
    same document.

    Args:
        source: The items.
        row_format: Tokenizer and layout.
        shard: The share of this process.
    """

    def __init__(self, source: VisitSource, row_format: RowFormat, shard: Shard) -> None:
        self._source = source
        self._row_format = row_format
        self._shard = shard

    def __call__(self, planned: Sequence[PlannedVisit]) -> dict[str, Any]:
        """Make the batch of one visit.

        Returns:
            The keys of `packing.collate_padded`, one document a row, and
            group int64 (B,): index of each row's item in `VisitSource.ids`.
            visit int64 (): number of the visit, the same on all processes.
            fact_ids list[str]: ids of all items of the visit, on all processes.
        """
        (visit,) = planned
        read = [
            (item, document)
            for item in visit.items
            for document in self._source.documents(item, visit.pass_number)
        ]
        rank, world_size = self._shard.rank, self._shard.world_size
        own = read[rank::world_size] or [read[rank % len(read)]]
        return self._row_format.collate_padded([document for _, document in own]) | {
            "group": torch.tensor([item for item, _ in own], dtype=torch.int64),
            "visit": torch.tensor(visit.number, dtype=torch.int64),
            "fact_ids": [self._source.ids[item] for item in visit.items],
        }
