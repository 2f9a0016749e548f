"""The record of the slots that each fact changed: a chain of deltas; any fact can be removed."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from triptych.models.remember.ledger.base_fingerprint import (
    BaseFingerprint,
    RowValues,
    values_fingerprint,
)
from triptych.models.remember.ledger.delta_chain import (
    chain_without,
    deltas_held,
    entry_files,
    entry_path,
    rows_of_any,
)
from triptych.models.remember.ledger.fact_texts import FactText, find_fact, texts_of
from triptych.models.remember.ledger.row_changes import composed
from triptych.models.remember.ledger.slot_deltas import (
    Outcome,
    SharedRows,
    SlotDelta,
    read_rows,
    require_same_base,
    write_rows,
)
from triptych.models.remember.memory_blocks import value_tables

# Shapes: D value width, E entries, U rows, W rows written, concatenated over entries


@dataclass(frozen=True, eq=False)
class Reverted:
    """The result of removing entries from a model.

    Attributes:
        ledger: The ledger of the changed model.
        outcome: The rows of the removed entries.
    """

    ledger: "Ledger"
    outcome: Outcome


class Ledger:
    """Deltas in the order of learning, each starting from the result of those before it.

    A ledger is immutable: operations return new ones.

    Args:
        entries: The deltas, in order.

    Raises:
        ValueError: if they have different bases.
    """

    def __init__(self, entries: Sequence[SlotDelta]) -> None:
        self.entries = tuple(entries)
        for entry in self.entries[1:]:
            require_same_base(self.entries[0].base, entry.base)

    # -- files ------------------------------------------------------------------------------------

    @classmethod
    def open(cls, folder: str | Path) -> "Ledger":
        """Read the entries of a folder, one file each.

        Raises:
            FileNotFoundError: if there is no such folder.
            ValueError: if a file is missing, cut short or damaged; the message gives its name.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(
                f"there is no ledger {folder}: give the folder `ledger` of a run with the callback "
                "triptych.callbacks.remember.ledger.slot_ledger.SlotLedger"
            )
        return cls([SlotDelta.load(path) for path in entry_files(folder)])

    def save(self, folder: str | Path) -> None:
        """Write every entry into an empty or new folder.

        Raises:
            ValueError: if the folder holds a ledger already.
        """
        if entry_files(folder):
            raise ValueError(f"{folder} holds a ledger already: choose another folder")
        for number, entry in enumerate(self.entries):
            entry.save(entry_path(folder, number))

    # -- queries ----------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.entries)

    def __iter__(self) -> Iterator[SlotDelta]:
        return iter(self.entries)

    @property
    def base(self) -> BaseFingerprint:
        """The model that the first entry started from.

        Raises:
            ValueError: if there is no entry.
        """
        if not self.entries:
            raise ValueError("the ledger is empty: the run learned nothing")
        return self.entries[0].base

    @property
    def facts(self) -> list[str]:
        """Ids of all facts in the model, in the order of their first entry."""
        return list(
            dict.fromkeys(
                fact for entry in self.entries if not entry.reverted for fact in entry.facts
            )
        )

    @cached_property
    def texts(self) -> dict[str, FactText | None]:
        """What each fact in the model says; None if its run did not know."""
        return texts_of(entry for entry in self.entries if not entry.reverted)

    @property
    def num_sessions(self) -> int:
        """Number of runs that learned, one after another, from the base on."""
        return max((entry.session for entry in self.entries), default=0)

    def find(self, words: str) -> str:
        """Return the id of the fact that has this id or sentence; see `fact_texts.find_fact`."""
        return find_fact(words, self.texts)

    def entries_of(self, fact: str) -> list[int]:
        """Return the numbers of a fact's entries, one for each visit."""
        return [number for number, entry in enumerate(self.entries) if fact in entry.facts]

    def rows_of(self, fact: str) -> tuple[Tensor, ...]:
        """Return the rows that a fact changed in each table, ascending."""
        self._require_facts({fact})
        own = [self.entries[number] for number in self.entries_of(fact)]
        tables = zip(*(entry.tables for entry in own), strict=True)
        return tuple(torch.cat([change.rows_U for change in table]).unique() for table in tables)

    def facts_of(self, row: int, table: int = 0) -> list[str]:
        """Return the ids of the facts that changed a row, in the order of writing."""
        if not self.entries:
            return []
        rows_W, entry_W = self.writes[table]
        numbers = entry_W[rows_W == row].tolist()
        return list(dict.fromkeys(fact for n in numbers for fact in self.entries[n].facts))

    def squashed(self) -> SlotDelta:
        """Compose all entries to one delta."""
        tables = zip(*(entry.tables for entry in self.entries), strict=True)
        return SlotDelta(
            tuple(composed(table) for table in tables),
            self.base,
            facts=tuple(self.facts),
            step=self.entries[-1].step,
            texts={fact: text for fact, text in self.texts.items() if text is not None},
            session=self.entries[-1].session,
        )

    @cached_property
    def writes(self) -> list[tuple[Tensor, Tensor]]:
        """For each table, all rows written, in order, and the numbers of their entries."""
        writes = []
        for table in zip(*(entry.tables for entry in self.entries), strict=True):
            lengths_E = torch.tensor([len(change) for change in table])
            rows_W = torch.cat([change.rows_U for change in table])
            writes.append((rows_W, torch.arange(len(table)).repeat_interleave(lengths_E)))
        return writes

    # -- models -----------------------------------------------------------------------------------

    def held_by(self, model: nn.Module) -> int:
        """Count the entries, from the first on, that a model holds.

        Raises:
            ValueError: if the model is not the ledger's base with the first entries applied.
        """
        self.base.require_around(model, "this ledger")
        net = self.squashed()
        present = [
            read_rows(table, change.rows_U)
            for table, change in zip(value_tables(model), net.tables, strict=True)
        ]
        num_held, num_wrong = deltas_held(self.entries, net, present)
        base_rows = [RowValues(change.rows_U, change.old_UD) for change in net.tables]
        if num_wrong or values_fingerprint(model, base_rows) != self.base.values:
            where = f"in {num_wrong} rows of" if num_wrong else "in rows outside of"
            raise ValueError(
                f"the model is not one of this ledger's: {where} the ledger it holds values from "
                "elsewhere. Give the model that the ledger's run exported or started from; a model "
                "written by `ledger unlearn` or `apply` has its ledger in its folder"
            )
        return num_held

    def move(self, model: nn.Module, to: int | None = None) -> None:
        """Set a model to the state after the first entries, forwards or backwards, to the bit.

        Args:
            model: The base, or the base with the first entries applied.
            to: Number of entries that it holds afterwards; 0 gives the base, None applies all.

        Raises:
            ValueError: if the model is another one, or the ledger has fewer entries.
        """
        to = len(self) if to is None else to
        if not 0 <= to <= len(self):
            raise ValueError(f"the ledger has {len(self)} entries: choose 0 to {len(self)}")
        self.held_by(model)
        net = self.squashed()
        wanted = self.entries[:to]
        for number, (table, change) in enumerate(zip(value_tables(model), net.tables, strict=True)):
            write_rows(table, change.rows_U, change.old_UD)
            if wanted:
                last = composed([entry.tables[number] for entry in wanted])
                write_rows(table, last.rows_U, last.new_UD)

    def revert_fact(
        self, model: nn.Module, fact: str, shared_rows: SharedRows = "keep"
    ) -> Reverted:
        """Remove one fact from a model and keep the rest; see `revert_entries`."""
        return self.revert_facts(model, [fact], shared_rows)

    def revert_facts(
        self, model: nn.Module, facts: Collection[str], shared_rows: SharedRows = "keep"
    ) -> Reverted:
        """Remove facts from a model, with all visits to them, and keep the rest.

        See `revert_entries`.

        Raises:
            ValueError: as there; also if the ledger has no such fact, or a fact was taught together
                with others that are kept.
        """
        wanted = set(facts)
        self._require_facts(wanted)
        numbers = []
        for number, entry in enumerate(self.entries):
            if together := wanted & set(entry.facts):
                if others := [fact for fact in entry.facts if fact not in wanted]:
                    raise ValueError(
                        f"{', '.join(sorted(together))} was taught together with "
                        f"{', '.join(others)}, and their changes cannot be separated: remove all "
                        "of them, or teach one fact at a time (facts_per_batch: 1)"
                    )
                numbers.append(number)
        return self.revert_entries(model, numbers, shared_rows)

    def revert_entries(
        self, model: nn.Module, numbers: Collection[int], shared_rows: SharedRows = "keep"
    ) -> Reverted:
        """Remove entries from a model and keep the rest.

        Rows without later writes get their values from before the entry back, to the bit. Rows that
        later entries wrote too cannot be restored without changing what these have learned:

        - `keep` does not change these rows. This is safer for the later facts, and the default. If
          most rows are shared, the model may still know the removed fact.
        - `subtract` subtracts the entry's difference (new - old) from these rows, in float32 and
          rounded once. Nothing of the entry remains. Later facts were learned on top of it: most
          survive, but sometimes one is lost.

        In both cases the ledger remains a chain, so removing everything, one by one and in any
        order, gives the base to the bit. With `keep`, the remainder of an entry stays in the
        ledger, marked `reverted`, until no later entry shares its rows.

        Args:
            model: A model that holds the entries; its tables are changed.
            numbers: Numbers of the entries.
            shared_rows: Treatment of rows that later entries wrote.

        Raises:
            ValueError: if the model is not one of this ledger's, or does not hold an entry.
        """
        num_held = self.held_by(model)
        if late := sorted(number for number in numbers if number >= num_held):
            raise ValueError(
                f"the model holds the first {num_held} of the ledger's {len(self)} entries, and "
                f"not {', '.join(map(str, late[:5]))}: give the model exported after them"
            )
        held = Ledger(self.entries[:num_held])
        left = held.without(numbers, shared_rows)
        exact, shared = [], []
        for number, table in enumerate(value_tables(model)):
            own_U = rows_of_any(held.entries[n].tables[number] for n in numbers)
            write_rows(table, *held._values_in(left, number, own_U))
            is_shared_U = torch.isin(own_U, held._rows_written_since(numbers, number))
            exact.append(own_U[~is_shared_U])
            shared.append(own_U[is_shared_U])
        outcome = Outcome(tuple(exact), tuple(shared), kept=shared_rows == "keep")
        return Reverted(left, outcome)

    def without(self, numbers: Collection[int], shared_rows: SharedRows = "keep") -> "Ledger":
        """Return the ledger without some entries; see `revert_entries`."""
        return Ledger(chain_without(self.entries, numbers, shared_rows))

    def _require_facts(self, facts: set[str]) -> None:
        known = list(dict.fromkeys(fact for entry in self.entries for fact in entry.facts))
        if missing := sorted(facts.difference(known)):
            raise ValueError(
                f"the ledger has no fact {', '.join(missing[:5])}. `ledger show` lists all "
                f"{len(known)} facts, such as {', '.join(known[:5])}"
            )

    def _values_in(self, left: "Ledger", table: int, rows_U: Tensor) -> tuple[Tensor, Tensor]:
        """Return rows and their values if only the entries in `left` were applied."""
        change = composed([entry.tables[table].among(rows_U) for entry in self])
        values_UD = change.old_UD.clone()
        if left.entries:
            remaining = composed([entry.tables[table].among(rows_U) for entry in left])
            values_UD[torch.searchsorted(change.rows_U, remaining.rows_U)] = remaining.new_UD
        return change.rows_U, values_UD

    def _rows_written_since(self, numbers: Collection[int], table: int) -> Tensor:
        """Return the rows of the entries that later, remaining entries wrote too."""
        rows_W, entry_W = self.writes[table]
        stays_E = torch.tensor(
            [not entry.reverted and n not in numbers for n, entry in enumerate(self.entries)],
            dtype=torch.bool,
        )
        rows_W, entry_W = rows_W[stays_E[entry_W]], entry_W[stays_E[entry_W]]
        written = [
            change.among(rows_W[entry_W > n])
            for n, change in ((n, self.entries[n].tables[table]) for n in numbers)
        ]
        return rows_of_any(written)
