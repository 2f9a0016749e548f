"""Deltas one after another, each beginning where those before it ended: files and algebra."""

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from triptych.models.remember.ledger.row_changes import Elsewhere, RowChange, same_bits
from triptych.models.remember.ledger.slot_deltas import SharedRows, SlotDelta

ENTRY_FILE = re.compile(r"entry_(\d{6,})\.safetensors")


def entry_path(folder: str | Path, number: int) -> Path:
    """File of an entry.

    >>> entry_path("ledger", 12).name
    'entry_000012.safetensors'
    """
    return Path(folder) / f"entry_{number:06d}.safetensors"


def entry_files(folder: str | Path) -> list[Path]:
    """Files of all entries in a folder, in order; none if there is no folder.

    Raises:
        ValueError: naming the first one that is missing among them.
    """
    found = {}
    for path in Path(folder).glob("entry_*.safetensors"):
        if match := ENTRY_FILE.fullmatch(path.name):
            found[int(match[1])] = path
    for number in range(len(found)):
        if number not in found:
            raise ValueError(
                f"{entry_path(folder, number)} is missing: the entries after it mean nothing "
                "without it. Copy the whole folder from where it was made"
            )
    return [found[number] for number in range(len(found))]


def deltas_held(
    chain: Sequence[SlotDelta], net: SlotDelta, present: Sequence[Tensor]
) -> tuple[int, int]:
    """How many deltas of a chain, from the first on, have been applied.

    Args:
        chain: The deltas, in order.
        net: The whole chain as one delta.
        present: For each table, what the rows of `net` hold.

    Returns:
        The largest number of deltas that fits, and 0; or 0, and how many rows differ from the
        state of the chain that comes closest.
    """
    wrong = [
        ~same_bits(change.new_UD, now_UD)
        for change, now_UD in zip(net.tables, present, strict=True)
    ]
    num_wrong = sum(int(is_wrong_U.sum()) for is_wrong_U in wrong)
    num_held, fewest = len(chain), num_wrong
    while num_wrong and num_held:  # undo one after another on paper, until all rows fit
        num_held -= 1
        for number, change in enumerate(chain[num_held].tables):
            at_U = torch.searchsorted(net.tables[number].rows_U, change.rows_U)
            is_wrong_U = ~same_bits(change.old_UD, present[number][at_U])
            num_wrong += int(is_wrong_U.sum()) - int(wrong[number][at_U].sum())
            wrong[number][at_U] = is_wrong_U
        fewest = min(fewest, num_wrong)
    return num_held, fewest


def chain_without(
    chain: Sequence[SlotDelta], numbers: Collection[int], shared_rows: SharedRows
) -> list[SlotDelta]:
    """Take deltas out of a chain, so that the rest is a chain again.

    Args:
        chain: The deltas, in order.
        numbers: Which of them to take out.
        shared_rows: What to do with rows that later deltas have written: `subtract` the delta's
            difference from these, or `keep` the rows as what is left of the delta.
    """
    later: list[SlotDelta] = []
    for number, delta in reversed(list(enumerate(chain))):
        if number not in numbers and not delta.reverted:
            later.insert(0, delta)
        elif number in numbers and shared_rows == "subtract":
            later = [rebased(other, delta.inverse()) for other in later]
        elif remainder := _shared_with(delta, later):
            later.insert(0, remainder)
    return later


def rebased(delta: SlotDelta, by: SlotDelta, elsewhere: Elsewhere = "shift") -> SlotDelta:
    """A delta as it would be had another come before it; see `RowChange.rebased`."""
    pairs = zip(delta.tables, by.tables, strict=True)
    return replace(delta, tables=tuple(own.rebased(other, elsewhere) for own, other in pairs))


def rows_of_any(changes: Iterable[RowChange]) -> Tensor:
    """Rows that any of the changes has written, ascending."""
    rows = [change.rows_U for change in changes]
    return torch.cat(rows).unique() if rows else torch.empty(0, dtype=torch.int64)


def _shared_with(entry: SlotDelta, later: Sequence[SlotDelta]) -> SlotDelta | None:
    """The rows of an entry that later ones have written too, as what is left of it."""
    tables = tuple(
        change.among(rows_of_any(other.tables[number] for other in later))
        for number, change in enumerate(entry.tables)
    )
    remainder = replace(entry, tables=tables, reverted=True)
    return remainder if remainder.num_rows else None
