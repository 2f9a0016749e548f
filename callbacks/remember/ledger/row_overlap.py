"""The overlap of rows about to be written with those of earlier entries."""

from collections.abc import Sequence

import torch
from torch import Tensor

from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta
from triptych.models.remember.values.value_table import ValueTable


class RowOverlap:
    """The last entry that wrote each row of each table, in four bytes per row.

    Args:
        tables: The value tables; the records lie on their devices.
    """

    def __init__(self, tables: Sequence[ValueTable]) -> None:
        self._last_entry = [
            torch.full((table.num_slots,), -1, dtype=torch.int32, device=table.weight.device)
            for table in tables
        ]
        self.forget()

    def add(self, number: int, delta: SlotDelta) -> None:
        """Record the rows of a complete entry."""
        for last_S, change in zip(self._last_entry, delta.tables, strict=True):
            last_S[change.rows_U.to(last_S.device)] = number

    def add_all(self, ledger: Ledger) -> None:
        """Record the rows of every entry, from the first on."""
        for number, delta in enumerate(ledger):
            self.add(number, delta)

    def look(self, table_id: int, rows_U: Tensor) -> None:
        """Look up the earlier entries of rows that are about to be written."""
        last_U = self._last_entry[table_id][rows_U]
        self.num_rows += rows_U.numel()
        self._writers.append(last_U[last_U >= 0])

    def forget(self) -> None:
        """Forget the rows looked at."""
        self.num_rows = 0
        self._writers: list[Tensor] = []

    @property
    def share(self) -> float:
        """Share of the rows looked at that an earlier entry has written."""
        return sum(map(len, self._writers)) / max(self.num_rows, 1)

    def by_entry(self) -> dict[int, int]:
        """Count, of the rows looked at, those that each entry was the last to write; descending."""
        writers = torch.cat([writers.cpu() for writers in self._writers])
        numbers, counts = torch.unique(writers, return_counts=True)
        order = counts.argsort(descending=True, stable=True)
        return dict(zip(numbers[order].tolist(), counts[order].tolist(), strict=True))
