"""Background statistics of a memory model, collected after pretraining or later."""

import copy
from collections.abc import Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from transformers import PreTrainedModel
from typing_extensions import override

from triptych.callbacks.remember.language_model import language_model_of, tokenizer_of
from triptych.callbacks.tracking.run_artifacts import log_tags
from triptych.callbacks.trainer_parts import datamodule_of, num_dry_run_batches
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.metrics.sharded_strategies import refuse_sharded, shards
from triptych.models.host.checked_folder import SUMS_FILE, write_checksums
from triptych.models.long_loop import with_progress
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.remember.background_collector import BackgroundCollector
from triptych.objectives.remember.background_statistics import (
    BACKGROUND_FILE,
    BackgroundStatistics,
    tables_of,
)

_NAME = "CollectBackgroundStatistics"
Document = list[dict[str, Any]]


class CollectBackgroundStatistics(Callback):
    """Counts the slots that ordinary text reads, so that sparse memory finetuning avoids them.

    At the end of `fit` it reads the exported model, so it must stand after ExportModel in the list
    of callbacks, and writes ``export/background.safetensors``. At the end of `validate`, with
    ``on_validate``, it reads the module's model and writes ``background.safetensors`` into the
    run's directory.

    The text is that of the run's training rows, from the first one on. Processes share the
    documents; the result does not depend on their number. After `fit`, a model without memory (a
    dense twin) is skipped.

    Args:
        num_documents: Documents to read. A slot that all of them read will never learn.
        rows_per_document: Training rows in a document. Use about the batch size of the later
            finetuning, since larger documents read more slots.
        path: File to write; null: as above.
        on_validate: Collect at the end of `validate` too.

    Raises:
        ValueError: if the module has no language model, or the data no tokenizer.

    Logs as tags: `background/num_documents`, `background/num_tokens`, and the shares of
    slots that any document (`background/slots_read_share`) or all documents
    (`background/slots_always_read_share`) have read. `summary.json` has them among the metrics.
    """

    def __init__(
        self,
        num_documents: PositiveInt = 200,
        rows_per_document: PositiveInt = 64,
        path: str | None = None,
        on_validate: bool = False,
    ) -> None:
        self.num_documents = num_documents
        self.rows_per_document = rows_per_document
        self.path = path
        self.on_validate = on_validate

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == TrainerFn.VALIDATING and self.on_validate:
            refuse_sharded(trainer, f"{_NAME} with on_validate reads a whole model")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not value_tables(pl_module):
            rank_zero_info("no background statistics: the model has no memory layers")
            return
        trainer.strategy.barrier()  # the first process has exported by now
        folder = Path(trainer.default_root_dir)
        if not (folder / "export" / "config.json").is_file():
            if shards(trainer):
                rank_zero_warn(
                    f"{_NAME} wrote nothing: the model is in shards, and there is no export to "
                    "read; add triptych.callbacks.run.export_model.ExportModel before it"
                )
                return
            self._collect(trainer, language_model_of(pl_module, _NAME), folder)
            return
        # The export is whole on every process, also if the module's model is in shards.
        # If a metric decides, the exported model is earlier than the module's.
        self._collect(trainer, load_memory_lm(folder / "export"), folder / "export")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == TrainerFn.VALIDATING and self.on_validate:
            tables_of(pl_module)
            model = language_model_of(pl_module, _NAME)
            self._collect(trainer, model, Path(trainer.default_root_dir))

    def _collect(self, trainer: Trainer, model: PreTrainedModel, folder: Path) -> None:
        device, data = model.device, datamodule_of(trainer)
        tokenizer = tokenizer_of(data, _NAME)
        assert data is not None
        nn.Module.to(model, trainer.strategy.root_device)  # by now the module is on the CPU
        collector = BackgroundCollector(model, tokenizer)
        with trainer.precision_plugin.forward_context():
            for document in self._documents(trainer, data):
                collector.add_document(*document)
        if trainer.world_size > 1:
            collector.reduce(partial(sum_over_ranks, trainer))
        if trainer.is_global_zero:
            path = Path(self.path) if self.path else folder / BACKGROUND_FILE
            background = collector.statistics()
            background.save(path)
            if (path.parent / SUMS_FILE).is_file():
                write_checksums(path.parent)
            _report(trainer, background, path)
        nn.Module.to(model, device)
        trainer.strategy.barrier()

    def _documents(self, trainer: Trainer, data: LightningDataModule) -> Iterator[Document]:
        """Yield this process's documents, with a progress bar or regular lines."""
        total = self.num_documents
        if num_dry_run_batches(trainer):
            total = min(total, num_dry_run_batches(trainer))
        documents = documents_of(data, self.rows_per_document)
        own = islice(documents, trainer.global_rank, total, trainer.world_size)
        shown = trainer.progress_bar_callback is not None and trainer.is_global_zero
        num_own = len(range(trainer.global_rank, total, trainer.world_size))
        yield from with_progress(own, "documents for background statistics", num_own, shown)


def documents_of(datamodule: LightningDataModule, rows_per_document: int) -> Iterator[Document]:
    """Regroup training rows, from the first one on, into documents of equal size; endless.

    Args:
        datamodule: Data with batches in the layout of `collate_rows`.
        rows_per_document: Rows of each document.

    Yields:
        A document as one or several batches, none with more rows than a training batch.

    Raises:
        ValueError: if there are no training rows, or they have another layout.
    """
    # Without a trainer, the datamodule serves one process from the first row on.
    alone = copy.copy(datamodule)
    alone.trainer = None
    loader = alone.train_dataloader()
    document: Document = []
    missing = rows_per_document
    while True:
        is_empty = True
        for batch in loader:
            is_empty = False
            first, num_rows = 0, _num_rows(batch)
            while first < num_rows:
                part = slice(first, min(first + missing, num_rows))
                document.append({name: batch[name][part] for name in LAYOUT})
                missing -= part.stop - part.start
                first = part.stop
                if missing == 0:
                    yield document
                    document, missing = [], rows_per_document
        if is_empty:
            raise ValueError("background statistics: the data have no training rows to read")


LAYOUT = ("input_ids", "position_ids", "segment_ids")


def _num_rows(batch: dict[str, Any]) -> int:
    lacking = [name for name in LAYOUT if name not in batch]
    if lacking:
        raise ValueError(
            f"background statistics need training batches with {', '.join(LAYOUT)}, and these "
            f"have no {', '.join(lacking)}: use a datamodule that packs rows, such as "
            "triptych.datamodules.remember.text.text_and_facts.TextAndFacts"
        )
    return len(batch["input_ids"])


def _report(trainer: Trainer, background: BackgroundStatistics, path: Path) -> None:
    num_slots = sum(table.counts_S.numel() for table in background.tables)
    read, always = (
        sum(int((t.document_frequency_S >= least).sum()) for t in background.tables) / num_slots
        for least in (1, background.num_documents)
    )
    values = {
        "background/num_documents": background.num_documents,
        "background/num_tokens": background.num_tokens,
        "background/slots_read_share": read,
        "background/slots_always_read_share": always,
    }
    tags = {name: f"{value:.6g}" for name, value in values.items()}
    log_tags(trainer, tags)  # of the whole run: a chart of them would have one point
    logged = {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}
    trainer.callback_metrics.update(logged)  # for summary.json
    rank_zero_info(
        f"background statistics: {path} tells sparse memory finetuning which slots ordinary text "
        f"reads, so that new facts go into others ({always:.1%} of the slots, read in every one of "
        f"{background.num_documents} documents, take no facts)"
    )
