"""Merging two ledgers of the same base."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from triptych.models.remember.ledger.delta_chain import rebased
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.ledger_overlap import overlap
from triptych.models.remember.ledger.row_changes import find_rows, same_bits
from triptych.models.remember.ledger.slot_deltas import SlotDelta, require_same_base

OnConflict = Literal["refuse", "sum", "first", "last"]


@dataclass(frozen=True)
class Conflicts:
    """Rows that two ledgers both wrote.

    Attributes:
        rows: For each table, these rows, ascending.
        of_first: Entry number in the first ledger -> number of these rows that it wrote, if any;
            largest number first.
        of_second: The same for the second ledger.
        facts_in_both: Ids of facts in both ledgers.
    """

    rows: tuple[Tensor, ...]
    of_first: Mapping[int, int]
    of_second: Mapping[int, int]
    facts_in_both: tuple[str, ...]

    @property
    def num_rows(self) -> int:
        """Number of rows written by both, over all tables."""
        return sum(rows_U.numel() for rows_U in self.rows)


@dataclass(frozen=True, eq=False)
class Merged:
    """A merged ledger, and the conflicts of its sources."""

    ledger: Ledger
    conflicts: Conflicts


def find_conflicts(first: Ledger, second: Ledger) -> Conflicts:
    """Find the rows that two ledgers both wrote.

    Raises:
        ValueError: if they have different bases, or one of them is empty.
    """
    require_same_base(first.base, second.base)
    rows = []
    for a, b in zip(first.squashed().tables, second.squashed().tables, strict=True):
        at_U, is_shared_U = find_rows(b.rows_U, a.rows_U)
        if not bool(same_bits(a.old_UD[is_shared_U], b.old_UD[at_U[is_shared_U]]).all()):
            raise ValueError(
                "the two start from different values of rows that both wrote: a delta from the "
                "middle of a ledger can only be merged together with those before it"
            )
        rows.append(a.rows_U[is_shared_U])
    return Conflicts(
        tuple(rows),
        overlap(rows, first).rows_of_entry,
        overlap(rows, second).rows_of_entry,
        tuple(fact for fact in first.facts if fact in set(second.facts)),
    )


def merge(
    first: Ledger | SlotDelta, second: Ledger | SlotDelta, on_conflict: OnConflict = "refuse"
) -> Merged:
    """Merge what two runs learned from the same base.

    The merged ledger holds the entries of the first and then those of the second, so every fact can
    still be removed. Rows written by only one of the two have its values, to the bit. For rows
    written by both:

    - `refuse` raises;
    - `sum` adds the differences of both, in float32 and rounded once;
    - `first` and `last` take the values of the first and of the second.

    Args:
        first: A ledger, or a delta as a ledger with one entry.
        second: Another, with the same base.
        on_conflict: Treatment of rows written by both.

    Raises:
        ValueError: if there are such rows and `on_conflict` is `refuse`, or the bases differ.
    """
    first, second = _as_ledger(first), _as_ledger(second)
    conflicts = find_conflicts(first, second)
    if not conflicts.num_rows:
        return Merged(Ledger([*first, *second]), conflicts)
    if on_conflict == "refuse":
        raise ValueError(
            f"both ledgers wrote {conflicts.num_rows} of the same rows: "
            f"{_facts(first, conflicts.of_first)} of the first and "
            f"{_facts(second, conflicts.of_second)} of the second. Choose the values of these rows "
            "(on_conflict): the sum of both differences (sum), or the values of one (first, last)"
        )
    if on_conflict == "first":
        moved = [_without_rows(entry, conflicts.rows) for entry in second]
    else:
        net = first.squashed()
        moved = [
            rebased(entry, net, "shift" if on_conflict == "sum" else "stay") for entry in second
        ]
    return Merged(Ledger([*first, *moved]), conflicts)


def _as_ledger(given: Ledger | SlotDelta) -> Ledger:
    return Ledger([given]) if isinstance(given, SlotDelta) else given


def _without_rows(delta: SlotDelta, rows: tuple[Tensor, ...]) -> SlotDelta:
    pairs = zip(delta.tables, rows, strict=True)
    return replace(
        delta, tables=tuple(own.only(~torch.isin(own.rows_U, rows_U)) for own, rows_U in pairs)
    )


def _facts(ledger: Ledger, rows_of_entry: Mapping[int, int]) -> str:
    names = [
        f"{', '.join(ledger.entries[number].facts) or f'entry {number}'} ({count} rows)"
        for number, count in rows_of_entry.items()
    ]
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
