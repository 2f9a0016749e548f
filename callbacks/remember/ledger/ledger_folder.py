"""The entries of a run's ledger on disk, consistent with its checkpoints."""

import os
import shutil
from pathlib import Path

from triptych.callbacks.atomic_file import atomic_file
from triptych.models.remember.ledger.delta_chain import entry_files, entry_path
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta

FOLDER = "ledger"


class LedgerFolder:
    """Entries that are appended one by one, each in an atomically written file.

    Args:
        path: The folder.
        num_entries: Number of entries at the start: those in the checkpoint of a resumed run, or
            those that the model has learned in earlier runs.
        before: The folder that has them: of the run that is resumed, or of the model to go on from.

    Raises:
        ValueError: if one of these entries is missing.
    """

    def __init__(self, path: Path, num_entries: int, before: Path | None) -> None:
        self.path, self.num_entries = path, num_entries
        for partial in path.glob(".entry_*.partial"):  # of a process that was killed
            partial.unlink()
        if before is not None and before.resolve() != path.resolve():
            self._copy(before)
        files = entry_files(path)
        if len(files) < num_entries:
            raise ValueError(
                f"{entry_path(path, len(files))} is missing, but the checkpoint comes after "
                f"{num_entries} entries: restore the ledger's folder"
            )
        # Entries after the checkpoint will be learned again. The last one is deleted first, so that
        # the rest is in order at any time.
        for file in reversed(files[num_entries:]):
            file.unlink()

    def append(self, delta: SlotDelta) -> int:
        """Write the next entry, and return its number."""
        delta.save(entry_path(self.path, self.num_entries))
        self.num_entries += 1
        return self.num_entries - 1

    def open(self) -> Ledger:
        """Read the ledger."""
        return Ledger.open(self.path) if self.num_entries else Ledger([])

    def copy_to(self, folder: Path) -> None:
        """Write the entries into another folder; a file is linked where that is possible."""
        for number in range(self.num_entries):
            copy_entry(entry_path(self.path, number), entry_path(folder, number))

    def _copy(self, before: Path) -> None:
        """Copy entries of the checkpoint's run that this folder lacks."""
        for number in range(len(entry_files(self.path)), self.num_entries):
            source = entry_path(before, number)
            if not source.is_file():
                raise ValueError(
                    f"{source} is missing, but the checkpoint comes after {self.num_entries} "
                    "entries: resume in the directory of the interrupted run (--run_dir), or copy "
                    f"its ledger to {self.path}"
                )
            copy_entry(source, entry_path(self.path, number))


def copy_entry(source: Path, target: Path) -> None:
    """Give an entry a second place; entries are never written again, so that a link will do."""
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), target)
    except OSError:  # another disk, or one without links
        with atomic_file(target) as partial:
            shutil.copyfile(source, partial)


def ledger_folder_of(model: str | Path) -> Path | None:
    """Return the ledger inside or beside an exported model; None if there is none.

    >>> ledger_folder_of("nowhere/export") is None
    True
    """
    inside, beside = Path(model) / FOLDER, Path(model).parent / FOLDER
    return next((folder for folder in (inside, beside) if entry_files(folder)), None)
