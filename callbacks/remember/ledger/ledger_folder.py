"""The entries of a run's ledger on disk, consistent with its checkpoints."""

import shutil
from pathlib import Path

from triptych.callbacks.atomic_file import atomic_file
from triptych.models.remember.ledger.delta_chain import entry_files, entry_path
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta


class LedgerFolder:
    """Entries that are appended one by one, each in an atomically written file.

    Args:
        path: The folder.
        num_entries: Number of the run's entries in its checkpoint.
        before: The folder of the run that is resumed, if there is one.

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
            with atomic_file(entry_path(self.path, number)) as partial:
                shutil.copyfile(source, partial)
