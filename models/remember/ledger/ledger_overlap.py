"""Before something is learned: whose rows would it write?"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta

# Shapes: E entries, U rows, W rows written, one after the other


@dataclass(frozen=True)
class Overlap:
    """How some rows are shared with the entries of a ledger.

    Attributes:
        num_rows: Rows that were asked about.
        num_shared: Those of them that some entry has written.
        rows_of_entry: Entry number -> how many of the rows it has written; only where there are
            any, most first.
    """

    num_rows: int
    num_shared: int
    rows_of_entry: dict[int, int]

    @property
    def share(self) -> float:
        """Share of the rows that some entry has written."""
        return self.num_shared / max(self.num_rows, 1)


def overlap(rows: SlotDelta | Sequence[Tensor], ledger: Ledger) -> Overlap:
    """See which entries of a ledger have written rows that are about to be written.

    Args:
        rows: A delta, for its rows; or for each table distinct rows.
        ledger: What was learned before.
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
    """For each entry, how many of its rows entries after it have written as well."""
    counts_E = torch.zeros(len(ledger), dtype=torch.int64)
    for rows_W, entry_W in ledger.writes:
        order_W = rows_W.argsort(stable=True)  # writes of a row one after another, last one last
        is_overwritten_W = rows_W[order_W][:-1] == rows_W[order_W][1:]
        counts_E += entry_W[order_W][:-1][is_overwritten_W].bincount(minlength=len(ledger))
    return counts_E.tolist()
