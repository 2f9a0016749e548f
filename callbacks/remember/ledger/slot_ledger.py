"""The ledger of sparse memory finetuning: which fact changed which slots, and their old values."""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from pathlib import Path
from typing import Any

from jsonargparse.typing import ClosedUnitInterval
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from typing_extensions import override

from triptych.callbacks.remember.ledger.ledger_entry import OpenEntry
from triptych.callbacks.remember.ledger.ledger_folder import (
    FOLDER,
    LedgerFolder,
    copy_entry,
    ledger_folder_of,
)
from triptych.callbacks.remember.ledger.row_overlap import RowOverlap
from triptych.callbacks.remember.row_updates import RowObserver
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.trainer_parts import callbacks_of, datamodule_of
from triptych.models.remember.ledger.base_fingerprint import BaseFingerprint
from triptych.models.remember.ledger.delta_chain import entry_files, entry_path
from triptych.models.remember.ledger.fact_texts import FactText, free_id, sentence_of, texts_of
from triptych.models.remember.ledger.ledger import Ledger
from triptych.models.remember.ledger.slot_deltas import SlotDelta
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.values.value_table import ValueTable
from triptych.protocols import HoldsModel, StartsFrom, TeachesFacts


class SlotLedger(RowObserver, Callback):
    """Writes a delta of the slots for every fact that `SparseMemoryFinetuning` teaches.

    An entry begins with the first update of a visit (batches name `visit` and `fact_ids`). It ends
    when the next visit begins or training ends. It holds the values before its first update and
    after its last. Its file is `ledger/entry_000012.safetensors` in the run's directory, about 2 MB
    at the paper's size. If batches have no `visit`, every step is an entry.

    A run that starts from a model with a ledger (`init_from`) goes on with it: the new entries
    follow those of the earlier runs, and all have the same base. An entry has the texts of its
    facts, if the data have them (`TeachesFacts`), and the number of its run (`session`). Another
    fact under an id that the ledger has gets an id of its own. The exported folder has a copy of
    the entries that its model holds.

    `Ledger` and `python train.py ledger` read the folder. They show the entries, take one fact out
    of the exported model, and merge two runs.

    Files are written atomically: `kill -9` loses only the open entry. A resumed run drops the
    entries after its checkpoint and repeats their updates. It ends with the same files as an
    uninterrupted run.

    Args:
        warn_on_overlap: Share of the rows of a fact's first step, from 0 to 1. If earlier facts
            have written at least this share, a warning names them; null: no warning.

    Raises:
        ValueError: if there is no `SparseMemoryFinetuning` to watch, a resumed run cannot find the
            entries before its checkpoint, the model's ledger is of another model, or two facts of
            the data have the same id.

    Logs `ledger/overlap_share` before each update: share of the rows about to be written that
    earlier entries have written, earlier visits to the same fact included. Logs
    `ledger/rows_per_entry` when an entry ends.
    """

    def __init__(self, warn_on_overlap: ClosedUnitInterval | None = None) -> None:
        self.warn_on_overlap = warn_on_overlap
        self._books: LedgerFolder | None = None  # on rank 0, while it trains
        self._model: nn.Module | None = None
        self._tables: Sequence[ValueTable] = []
        self._base: BaseFingerprint | None = None
        self._num_entries = 0
        self._session = 1
        self._earlier: Path | None = None  # the ledger of the model that the run starts from
        self._names: dict[str, str] = {}  # id in the data -> id in the ledger
        self._texts: dict[str, FactText] = {}
        self._open: OpenEntry | None = None
        self._visit: int | None = None
        self._facts: dict[str, None] = {}  # of the batches since the last optimizer step
        self._last_step = 0
        self._is_first_update = False
        self._overlap = RowOverlap([])

    # -- before the run ---------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        watched = [c for c in callbacks_of(trainer) if isinstance(c, SparseMemoryFinetuning)]
        if not watched:
            raise ValueError(
                "SlotLedger has nothing to watch: add "
                "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning to "
                "trainer.callbacks, or leave the ledger out"
            )
        for callback in watched:
            if self not in callback.observers:
                callback.observers.append(self)
        # Deltas use the parameter names of the module's model, which is exported.
        self._tables = value_tables(pl_module)
        model = pl_module.model if isinstance(pl_module, HoldsModel) else None
        exported = model is not None and value_tables(model) == self._tables
        self._model = model if exported else pl_module
        self._base, self._num_entries, self._open = None, 0, None
        self._books, self._session = None, 1
        self._facts.clear()
        start = pl_module.init_from if isinstance(pl_module, StartsFrom) else None
        self._earlier = None if start is None else ledger_folder_of(start)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._last_step = trainer.global_step
        problem = None
        if trainer.is_global_zero:
            try:
                self._begin(trainer)
            except (OSError, ValueError) as error:
                problem = f"SlotLedger: {error}"
        if problem := trainer.strategy.broadcast(problem):  # all ranks stop together
            raise ValueError(problem)

    def _begin(self, trainer: Trainer) -> None:
        """Bring the folder to the state of the checkpoint, or begin a new one."""
        path = Path(trainer.default_root_dir) / FOLDER
        before = Path(trainer.ckpt_path).parent.parent / FOLDER if trainer.ckpt_path else None
        if before is None and self._earlier is not None:
            before = self._go_on_from(self._earlier)
            for stale in reversed(entry_files(path)):
                stale.unlink()
        if self._base is None:
            assert self._model is not None
            self._base = BaseFingerprint.of(self._model)
        self._books = LedgerFolder(path, self._num_entries, before)
        ledger = self._books.open()
        self._name_facts(ledger, datamodule_of(trainer))
        self._overlap = RowOverlap(self._tables)
        self._overlap.add_all(ledger)

    def _go_on_from(self, earlier: Path) -> Path:
        """Take over the base and the entries that the model holds."""
        assert self._model is not None
        ledger = Ledger.open(earlier)
        try:
            self._num_entries = ledger.held_by(self._model)
        except ValueError as error:
            raise ValueError(
                f"the ledger {earlier} does not fit the model that the run starts from ({error}). "
                "To begin a new ledger, move that folder away"
            ) from error
        self._base = ledger.base
        self._session = Ledger(ledger.entries[: self._num_entries]).num_sessions + 1
        return earlier

    def _name_facts(self, ledger: Ledger, data: Any) -> None:
        """Give each fact of the data an id that no other fact of the ledger has."""
        facts = data.facts if isinstance(data, TeachesFacts) else []
        known, self._names, self._texts = texts_of(ledger), {}, {}
        for fact in facts:
            if not is_dataclass(fact) or isinstance(fact, type):
                continue
            text = {key: value for key, value in asdict(fact).items() if value not in (None, ())}
            own = text.pop("id")
            text.pop("place", None)  # where it stood, on a disk of that day
            name = free_id(own, text, known)
            if self._names.setdefault(own, name) != name:
                raise ValueError(
                    f"two facts of the data have the id {own!r}: "
                    f"{sentence_of(self._texts[self._names[own]])!r} and {sentence_of(text)!r}. "
                    "Give each an id of its own, so that one can be taken back without the other"
                )
            known[name] = self._texts[name] = text
        if renamed := [f"{own} -> {name}" for own, name in self._names.items() if own != name]:
            rank_zero_warn(
                "SlotLedger: earlier runs taught other facts under the same ids, so these get new "
                f"ones: {', '.join(renamed[:5])}{', ...' if len(renamed) > 5 else ''}"
            )

    # -- a step -----------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._books is None:
            return
        visit = batch.get("visit") if isinstance(batch, dict) else None
        self._visit = None if visit is None else int(visit)
        if self._open is not None and self._open.visit != self._visit:
            self._close_and_log(trainer, pl_module)
        self._facts.update((self._names.get(fact, fact), None) for fact in _facts_of(batch))

    @override
    def before_update(self, table_id: int, table: ValueTable, rows: Tensor) -> None:
        if self._books is None:
            return
        if self._open is None:
            self._open, self._is_first_update = OpenEntry(self._visit, len(self._tables)), True
        self._overlap.look(table_id, rows)
        self._open.add_facts(self._facts)
        self._open.touch(table_id, table, rows)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._books is None or trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        self._facts.clear()
        if self._overlap.num_rows:
            pl_module.log("ledger/overlap_share", self._overlap.share, rank_zero_only=True)
            if self._is_first_update:
                self._warn(self._books, self._open)
            self._is_first_update = False
            self._overlap.forget()
        if self._open is not None and self._visit is None:
            self._close_and_log(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._open is not None:
            self._close(trainer)

    def _close_and_log(self, trainer: Trainer, pl_module: LightningModule) -> None:
        entry = self._close(trainer)
        pl_module.log("ledger/rows_per_entry", float(entry.num_rows), rank_zero_only=True)

    def _close(self, trainer: Trainer) -> SlotDelta:
        assert self._books is not None
        entry = self._entry_so_far(trainer.global_step)
        self._overlap.add(self._books.append(entry), entry)
        self._num_entries, self._open = self._books.num_entries, None
        return entry

    def _entry_so_far(self, step: int) -> SlotDelta:
        assert self._open is not None
        assert self._base is not None
        entry = self._open.close(self._tables, self._base, step)
        texts = {fact: self._texts[fact] for fact in entry.facts if fact in self._texts}
        return replace(entry, texts=texts, session=self._session)

    def add_to_export(self, folder: Path) -> None:
        """Write the entries that the model holds at this moment into an exported folder."""
        if self._books is not None:
            self._books.copy_to(folder / FOLDER)
            if self._open is not None:
                path = entry_path(folder / FOLDER, self._books.num_entries)
                self._entry_so_far(self._last_step).save(path)
        elif self._earlier is not None:  # nothing was trained
            for path in entry_files(self._earlier):
                copy_entry(path, folder / FOLDER / path.name)

    def _warn(self, books: LedgerFolder, entry: OpenEntry | None) -> None:
        share = self._overlap.share
        facts = () if entry is None else entry.facts
        if self.warn_on_overlap is None or not share or share < self.warn_on_overlap:
            return
        most = [
            f"{SlotDelta.load(entry_path(books.path, number)).name} ({count} rows)"
            for number, count in list(self._overlap.by_entry().items())[:3]
        ]
        rank_zero_warn(
            f"{', '.join(facts) or f'step {self._last_step}'} writes "
            f"{self._overlap.num_rows} rows, {share:.0%} of which earlier facts have written: "
            f"{', '.join(most)}, ..."
        )

    # -- checkpoints ------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return "SlotLedger"

    @override
    def state_dict(self) -> dict[str, Any]:
        return {
            "base": None if self._base is None else asdict(self._base),
            "num_entries": self._num_entries,
            "session": self._session,
            "open": None if self._open is None else self._open.state_dict(),
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        base, entry = state_dict["base"], state_dict["open"]
        self._base = None if base is None else BaseFingerprint(**base)
        self._num_entries, self._session = state_dict["num_entries"], state_dict.get("session", 1)
        self._open = None if entry is None else OpenEntry.from_state(entry)


def _facts_of(batch: Any) -> list[str]:
    """Return the ids of a batch's facts, on all ranks, or else its groups' numbers."""
    if not isinstance(batch, dict):
        return []
    if "fact_ids" in batch:
        return list(batch["fact_ids"])
    groups = batch.get("group")
    return [] if groups is None else [str(number) for number in groups.unique().tolist()]
