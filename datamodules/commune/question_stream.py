"""An endless stream of question numbers, reshuffled in each epoch."""

from collections.abc import Iterator

import torch
from typing_extensions import override

from triptych.datamodules.batches.row_stream import Cursor, RowStream


class ShuffledRows(RowStream[int]):
    """Row numbers in a new order for each epoch.

    Args:
        num_rows: Number of rows.
        seed: Seed of the orders.
        rows_per_batch: Rows of one batch of all processes. The rows of an epoch that fill no batch
            are left out.

    Raises:
        ValueError: if the rows fill no batch.

    >>> rows = ShuffledRows(5, seed=0, rows_per_batch=2).read({"epoch": 3, "row": 2})
    >>> [cursor for _, cursor in (next(rows), next(rows), next(rows))][1:]
    [{'epoch': 3, 'row': 4}, {'epoch': 4, 'row': 1}]
    """

    def __init__(self, num_rows: int, seed: int, rows_per_batch: int = 1) -> None:
        if not 0 < rows_per_batch <= num_rows:
            raise ValueError(
                f"{num_rows} training questions fill no batch of {rows_per_batch} for all "
                "processes: give the task more questions, or use fewer processes"
            )
        self._num_rows, self._seed = num_rows, seed
        self._rows_per_epoch = num_rows // rows_per_batch * rows_per_batch

    @override
    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[int, Cursor]]:
        """Yield rows from `cursor` on; see the base class."""
        epoch, first = (cursor["epoch"], cursor["row"]) if cursor else (0, 0)
        while True:
            order = self.order(epoch)
            for index in range(first, self._rows_per_epoch):
                yield order[index], {"epoch": epoch, "row": index + 1}
            epoch, first = epoch + 1, 0

    def order(self, epoch: int) -> list[int]:
        """Return all rows in the order of an epoch."""
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        order: list[int] = torch.randperm(self._num_rows, generator=generator).tolist()
        return order

    @override
    def num_rows(self) -> int:
        """Return the number of rows in an epoch."""
        return self._rows_per_epoch
