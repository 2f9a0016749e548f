"""Endless, deterministic streams of training rows with random access.

A stream is read from a cursor, and yields every row with the cursor of the next row. A cursor
consists of plain numbers, is saved in the checkpoint, and gives the same rows in any process.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from triptych.datamodules.batches.packing import Document, DocumentSource, PackedRows, pack_epoch

Cursor = dict[str, Any]
Planned = TypeVar("Planned")
# The mixture draws its sources in blocks of this many rows, so that reading from a cursor is fast.
DRAWN_ROWS = 1024


@dataclass(frozen=True, slots=True)
class PlannedRow:
    """A planned row, not yet read: cheap to skip.

    Args:
        rows: The packed rows it belongs to.
        index: Index of the row in `rows`.
        source_id: Index of its source among the datamodule's `source_names`.
    """

    rows: PackedRows
    index: int
    source_id: int = 0

    def segments(self) -> list[Document]:
        """Read the row."""
        return self.rows.row(self.index)


class RowStream(ABC, Generic[Planned]):
    """An endless sequence of planned rows. Streams are sent to loader workers, so they must pickle.

    Attributes:
        max_workers: Most processes that may read the stream together; None: any number.
    """

    max_workers: int | None = None

    @abstractmethod
    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[Planned, Cursor]]:
        """Yield rows from `cursor` on (None: from the start), each with the cursor after it."""

    @abstractmethod
    def num_rows(self) -> int | None:
        """Return the number of rows in one pass over the data, None if it is unknown."""


class EpochStream(RowStream[PlannedRow]):
    """Endless passes over a source, shuffled and packed anew for each.

    Args:
        source: The documents.
        seed: Seed of the shuffles.
        context_length: T.
    """

    def __init__(self, source: DocumentSource, seed: int, context_length: int) -> None:
        self._source = source
        self._seed = seed
        self._context_length = context_length

    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[PlannedRow, Cursor]]:
        """Yield rows from `cursor` on; see the base class."""
        epoch, first = (cursor["epoch"], cursor["row"]) if cursor else (0, 0)
        while True:
            rows = self._pack(epoch)
            for index in range(first, len(rows)):
                yield PlannedRow(rows, index), {"epoch": epoch, "row": index + 1}
            epoch, first = epoch + 1, 0

    def num_rows(self) -> int:
        """Return the number of rows in the first pass (later ones differ by a few)."""
        return len(self._pack(0))

    def _pack(self, epoch: int) -> PackedRows:
        return pack_epoch(self._source, epoch, self._seed, self._context_length)


class MixtureStream(RowStream[PlannedRow]):
    """Rows of several streams, mixed by seeded choices.

    A choice depends on the row's number alone, so a mixture can be read from any cursor.

    Args:
        streams: The streams; a row's `source_id` is its stream's index here.
        shares: Share of the rows for each, adding up to 1.
        seed: Seed of the choices.
    """

    def __init__(
        self, streams: Sequence[RowStream[PlannedRow]], shares: Sequence[float], seed: int
    ) -> None:
        if len(streams) != len(shares) or min(shares) < 0 or abs(sum(shares) - 1) > 1e-9:
            raise ValueError(
                f"shares are {list(shares)}: give one for each of the {len(streams)} sources, none "
                "below 0, adding up to 1"
            )
        self._streams = list(streams)
        self._shares = list(shares)
        self._seed = seed
        limits = [s.max_workers for s in self._streams if s.max_workers is not None]
        self.max_workers = min(limits, default=None)

    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[PlannedRow, Cursor]]:
        """Yield rows from `cursor` on; see the base class."""
        number = cursor["row"] if cursor else 0
        cursors = list(cursor["sources"]) if cursor else [None] * len(self._streams)
        readers = [stream.read(c) for stream, c in zip(self._streams, cursors, strict=True)]
        while True:
            block, first = divmod(number, DRAWN_ROWS)
            for source_id in self._draw(block)[first:]:
                row, cursors[source_id] = next(readers[source_id])
                number += 1
                yield (
                    PlannedRow(row.rows, row.index, source_id),
                    {"row": number, "sources": list(cursors)},
                )

    def num_rows(self) -> int | None:
        """Return the number of rows in one pass over the first source."""
        first = self._streams[0].num_rows()
        return None if first is None else round(first / self._shares[0])

    def _draw(self, block: int) -> list[int]:
        generator = np.random.default_rng([self._seed, block])
        drawn: list[int] = generator.choice(len(self._shares), DRAWN_ROWS, p=self._shares).tolist()
        return drawn
