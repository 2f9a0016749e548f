"""Chains of deltas, each starting from the result of those before it: files and algebra."""

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
    """Return the path of an entry's file.

    >>> entry_path("ledger", 12).name
    'entry_000012.safetensors'
    """
    return Path(folder) / f"entry_{number:06d}.safetensors"


def entry_files(folder: str | Path) -> list[Path]:
    """Return the files of all entries in a folder, in order; none if there is no folder.

    Raises:
        ValueError: if an entry is missing; the message gives the first one.
    """
    found = {}
    for path in Path(folder).glob("entry_*.safetensors"):
        if match := ENTRY_FILE.fullmatch(path.name):
            found[int(match[1])] = path
    for number in range(len(found)):
        if number not in found:
            raise ValueError(
                f"{entry_path(folder, number)} is missing, and later entries depend on it: copy "
                "the whole folder again from the original"
            )
    return [found[number] for number in range(len(found))]


def deltas_held(
    chain: Sequence[SlotDelta], net: SlotDelta, present: Sequence[Tensor]
) -> tuple[int, int]:
    """Count the deltas of a chain, from the first on, that have been applied.

    Args:
        chain: The deltas, in order.
        net: The whole chain as one delta.
        present: For each table, the present values of the rows of `net`.

    Returns:
        The largest number of deltas that fits, and 0. If none fits: 0, and the number of rows that
        differ from the closest state of the chain.
    """
    wrong = [
        ~same_bits(change.new_UD, now_UD)
        for change, now_UD in zip(net.tables, present, strict=True)
    ]
    num_wrong = sum(int(is_wrong_U.sum()) for is_wrong_U in wrong)
    num_held, fewest = len(chain), num_wrong
    while num_wrong and num_held:  # undo the deltas one by one until all rows fit
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
    """Remove deltas from a chain, so that the rest is a chain again.

    Args:
        chain: The deltas, in order.
        numbers: Numbers of the deltas to remove.
        shared_rows: Treatment of rows that later deltas wrote: `subtract` the delta's difference
            from these, or `keep` the rows as the remainder of the delta.
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
    """Rebase a delta onto another one; see `RowChange.rebased`."""
    pairs = zip(delta.tables, by.tables, strict=True)
    return replace(delta, tables=tuple(own.rebased(other, elsewhere) for own, other in pairs))


def rows_of_any(changes: Iterable[RowChange]) -> Tensor:
    """Return all rows that the changes wrote, ascending."""
    rows = [change.rows_U for change in changes]
    return torch.cat(rows).unique() if rows else torch.empty(0, dtype=torch.int64)


def _shared_with(entry: SlotDelta, later: Sequence[SlotDelta]) -> SlotDelta | None:
    """Return the remainder of an entry: its rows that later entries wrote too."""
    tables = tuple(
        change.among(rows_of_any(other.tables[number] for other in later))
        for number, change in enumerate(entry.tables)
    )
    remainder = replace(entry, tables=tables, reverted=True)
    return remainder if remainder.num_rows else None
