"""Merging two ledgers of the same base."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from triptych.models.remember.ledger.delta_chain import rebased
from triptych.models.remember.ledger.fact_texts import free_id
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
        num_common: Number of entries that both begin with, which count once.
        renamed: Other facts of the second ledger under an id of the first -> their new ids.
    """

    rows: tuple[Tensor, ...]
    of_first: Mapping[int, int]
    of_second: Mapping[int, int]
    facts_in_both: tuple[str, ...]
    num_common: int = 0
    renamed: Mapping[str, str] = field(default_factory=dict)

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
    """Find the rows that two ledgers both wrote, after the entries that they begin with together.

    Raises:
        ValueError: if they have different bases, or one of them is empty.
    """
    require_same_base(first.base, second.base)
    num_common = _num_common(first, second)
    own, other = (Ledger(ledger.entries[num_common:]) for ledger in (first, second))
    if not own.entries or not other.entries:  # one goes on from the end of the other
        none = tuple(torch.empty(0, dtype=torch.int64) for _ in first.entries[0].tables)
        return Conflicts(none, {}, {}, (), num_common)
    rows = []
    for a, b in zip(own.squashed().tables, other.squashed().tables, strict=True):
        at_U, is_shared_U = find_rows(b.rows_U, a.rows_U)
        if not bool(same_bits(a.old_UD[is_shared_U], b.old_UD[at_U[is_shared_U]]).all()):
            raise ValueError(
                "the two start from different values of rows that both wrote: a delta from the "
                "middle of a ledger can only be merged together with those before it"
            )
        rows.append(a.rows_U[is_shared_U])
    return Conflicts(
        tuple(rows),
        _counted_from(num_common, overlap(rows, own).rows_of_entry),
        _counted_from(num_common, overlap(rows, other).rows_of_entry),
        tuple(fact for fact in own.facts if fact in set(other.facts)),
        num_common,
    )


def merge(
    first: Ledger | SlotDelta, second: Ledger | SlotDelta, on_conflict: OnConflict = "refuse"
) -> Merged:
    """Merge what two runs learned from the same base.

    The merged ledger holds the entries of the first and then those of the second, so every fact can
    still be removed. Entries that both begin with, such as the first day of two people who then
    went on alone, are held once. A fact of the second under an id that another fact of the first
    has gets an id of its own.

    Rows written by only one of the two have its values, to the bit. For rows
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
    num_common = find_conflicts(first, second).num_common
    second, renamed = _with_own_ids(first, second, num_common)
    conflicts = replace(find_conflicts(first, second), renamed=renamed)
    own, other = first.entries[num_common:], second.entries[num_common:]
    sessions = first.num_sessions - Ledger(first.entries[:num_common]).num_sessions
    other = tuple(replace(entry, session=entry.session + sessions) for entry in other)
    if not conflicts.num_rows:
        return Merged(Ledger([*first, *other]), conflicts)
    if on_conflict == "refuse":
        raise ValueError(
            f"both ledgers wrote {conflicts.num_rows} of the same rows: "
            f"{_facts(first, conflicts.of_first)} of the first and "
            f"{_facts(second, conflicts.of_second)} of the second. Choose the values of these rows "
            "(on_conflict): the sum of both differences (sum), or the values of one (first, last)"
        )
    if on_conflict == "first":
        moved = [_without_rows(entry, conflicts.rows) for entry in other]
    else:
        net = Ledger(own).squashed()
        moved = [
            rebased(entry, net, "shift" if on_conflict == "sum" else "stay") for entry in other
        ]
    return Merged(Ledger([*first, *moved]), conflicts)


def _num_common(first: Ledger, second: Ledger) -> int:
    """Count the equal entries that two ledgers begin with."""
    pairs = zip(first, second, strict=False)
    return next(
        (number for number, pair in enumerate(pairs) if not _equal(*pair)),
        min(len(first), len(second)),
    )


def _equal(a: SlotDelta, b: SlotDelta) -> bool:
    return (a.facts, a.visit, a.reverted) == (b.facts, b.visit, b.reverted) and all(
        torch.equal(one.rows_U, other.rows_U)
        and bool(same_bits(one.old_UD, other.old_UD).all())
        and bool(same_bits(one.new_UD, other.new_UD).all())
        for one, other in zip(a.tables, b.tables, strict=True)
    )


def _with_own_ids(first: Ledger, second: Ledger, num_common: int) -> tuple[Ledger, dict[str, str]]:
    """Give other facts of the second ledger other ids than those of the first."""
    known, names = dict(first.texts), {}
    for fact, text in second.texts.items():
        names[fact] = free_id(fact, text, known)
        known[names[fact]] = text
    renamed = {fact: name for fact, name in names.items() if fact != name}
    entries = list(second.entries[:num_common])
    for entry in second.entries[num_common:]:
        facts = tuple(renamed.get(fact, fact) for fact in entry.facts)
        texts = {renamed.get(fact, fact): text for fact, text in entry.texts.items()}
        entries.append(replace(entry, facts=facts, texts=texts))
    return Ledger(entries), renamed


def _counted_from(first: int, rows_of_entry: Mapping[int, int]) -> dict[int, int]:
    return {number + first: count for number, count in rows_of_entry.items()}


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
