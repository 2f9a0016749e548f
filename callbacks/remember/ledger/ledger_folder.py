"""The entries of a run's ledger on disk, in step with its checkpoints."""

import shutil
from pathlib import Path

from triptych.callbacks.atomic_file import atomic_file
from triptych.models.remember.ledger.delta_chain import entry_files, entry_path
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta


class LedgerFolder:
    """Entries that are appended one by one, each as a file that is whole or not there.

    Args:
        path: The folder.
        num_entries: How many entries the run has, from its checkpoint.
        before: The folder of the run that it goes on from, if there is one.

    Raises:
        ValueError: if some of these entries are missing.
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
                f"{num_entries} entries: bring the ledger's folder back as it was"
            )
        # What was written after the checkpoint is about to be learned anew. From the last one on,
        # so that those left are in order at any time.
        for file in reversed(files[num_entries:]):
            file.unlink()

    def append(self, delta: SlotDelta) -> int:
        """Write the next entry; returns its number."""
        delta.save(entry_path(self.path, self.num_entries))
        self.num_entries += 1
        return self.num_entries - 1

    def open(self) -> Ledger:
        """Read it."""
        return Ledger.open(self.path) if self.num_entries else Ledger([])

    def _copy(self, before: Path) -> None:
        """Take over what the checkpoint's run had written before it, if this folder lacks it."""
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
