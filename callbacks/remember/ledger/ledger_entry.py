"""An entry of the ledger while its fact is learned."""

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from triptych.models.remember.ledger.base_fingerprint import BaseFingerprint
from triptych.models.remember.ledger.row_changes import RowChange
from triptych.models.remember.ledger.slot_deltas import SlotDelta, read_rows
from triptych.models.remember.values.value_table import ValueTable


class OpenEntry:
    """The values of rows before the entry first changed them.

    Args:
        visit: Number of the visit that is learned; None if batches have none.
        num_tables: Number of value tables.
    """

    def __init__(self, visit: int | None, num_tables: int) -> None:
        self.visit = visit
        self._facts: dict[str, None] = {}
        self._rows = [[torch.empty(0, dtype=torch.int64)] for _ in range(num_tables)]
        self._old: list[list[Tensor]] = [[] for _ in range(num_tables)]

    @property
    def facts(self) -> tuple[str, ...]:
        """Ids of the facts that are learned."""
        return tuple(self._facts)

    def add_facts(self, facts: Iterable[str]) -> None:
        """Add the facts of the next update."""
        self._facts.update(dict.fromkeys(facts))

    def touch(self, table_id: int, table: ValueTable, rows_U: Tensor) -> None:
        """Keep the values of rows that are about to change for the first time."""
        rows_U = rows_U.cpu()
        fresh_U = rows_U[torch.isin(rows_U, torch.cat(self._rows[table_id]), invert=True)]
        if fresh_U.numel():
            self._rows[table_id].append(fresh_U)
            self._old[table_id].append(read_rows(table, fresh_U))

    def close(self, tables: Sequence[ValueTable], base: BaseFingerprint, step: int) -> SlotDelta:
        """Make the delta, without rows that have kept every bit."""
        changes = []
        for table, rows, old in zip(tables, self._rows, self._old, strict=True):
            if old:
                rows_U = torch.cat(rows)
                change = RowChange.between(rows_U, torch.cat(old), read_rows(table, rows_U))
            else:
                change = RowChange.none(table.value_dim, table.weight.dtype)
            changes.append(change)
        return SlotDelta(tuple(changes), base, self.facts, step=step, visit=self.visit)

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain types."""
        return {
            "visit": self.visit,
            "facts": list(self._facts),
            "rows": [torch.cat(rows) for rows in self._rows],
            "old": [torch.cat(old) if old else None for old in self._old],
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "OpenEntry":
        """Restore what `state_dict` returned."""
        entry = cls(state["visit"], len(state["rows"]))
        entry.add_facts(state["facts"])
        entry._rows = [[rows_U] for rows_U in state["rows"]]
        entry._old = [[] if old_UD is None else [old_UD] for old_UD in state["old"]]
        return entry
