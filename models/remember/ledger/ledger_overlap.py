"""The entries of a ledger that share rows with a new fact, before it is learned."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta

# Shapes: E entries, U rows, W rows written, concatenated over entries


@dataclass(frozen=True)
class Overlap:
    """The overlap of some rows with the entries of a ledger.

    Attributes:
        num_rows: Number of the rows.
        num_shared: Number of the rows that an entry wrote.
        rows_of_entry: Entry number -> number of the rows that it wrote, if any; largest number
            first.
    """

    num_rows: int
    num_shared: int
    rows_of_entry: dict[int, int]

    @property
    def share(self) -> float:
        """Share of the rows that an entry wrote."""
        return self.num_shared / max(self.num_rows, 1)


def overlap(rows: SlotDelta | Sequence[Tensor], ledger: Ledger) -> Overlap:
    """Find the entries of a ledger that wrote some of the given rows.

    Args:
        rows: A delta, for its rows; or distinct rows for each table.
        ledger: The ledger of what was learned before.
    """
    if isinstance(rows, SlotDelta):
        rows = [change.rows_U for change in rows.tables]
    counts_E = torch.zeros(len(ledger), dtype=torch.int64)
    num_shared = 0
    for (rows_W, entry_W), own_U in zip(ledger.writes, rows, strict=bool(ledger.entries)):
        is_shared_W = torch.isin(rows_W, own_U.cpu())
        counts_E += entry_W[is_shared_W].bincount(minlength=len(ledger))
        num_shared += rows_W[is_shared_W].unique().numel()
    most_first = counts_E.argsort(descending=True, stable=True).tolist()
    return Overlap(
        num_rows=sum(own_U.numel() for own_U in rows),
        num_shared=num_shared,
        rows_of_entry={n: int(counts_E[n]) for n in most_first if counts_E[n]},
    )


def shared_with_later(ledger: Ledger) -> list[int]:
    """Count, for each entry, its rows that later entries wrote too."""
    counts_E = torch.zeros(len(ledger), dtype=torch.int64)
    for rows_W, entry_W in ledger.writes:
        order_W = rows_W.argsort(stable=True)  # groups the writes of a row, in order
        is_overwritten_W = rows_W[order_W][:-1] == rows_W[order_W][1:]
        counts_E += entry_W[order_W][:-1][is_overwritten_W].bincount(minlength=len(ledger))
    return counts_E.tolist()
