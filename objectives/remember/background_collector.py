"""Collection of background statistics: counts the slots that documents read in a model.

collector = BackgroundCollector(model, tokenizer)
for batch in batches:  # one document of the paper is a whole batch of rows
    collector.add_document(batch)
collector.statistics().save(folder / BACKGROUND_FILE)
"""

# Shapes: S slots of a table, (B, T) rows and tokens of a batch

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triptych.models.remember.memory_blocks import memory_layers, value_tables
from triptych.models.segment_mask import packed_attention
from triptych.objectives.remember.background_statistics import (
    BackgroundStatistics,
    index_fingerprint,
    tables_of,
    tokenizer_fingerprint,
)
from triptych.objectives.remember.slot_scores import TableStatistics, count_accesses
from triptych.objectives.remember.value_scales import ValueScales


class BackgroundCollector:
    """Streams documents through a model and counts the slots they read.

    The model's training mode, its layers' records and its gradients stay unchanged.

    Args:
        model: A model with memory layers.
        tokenizer: The tokenizer of the documents.

    Raises:
        ValueError: if the model has no memory layers.
    """

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.num_documents = 0
        self._num_tokens = self._num_rows = self._num_positions = 0
        sizes = [table.num_slots for table in tables_of(model)]
        self._counts, self._document_frequencies = (
            [torch.zeros(size, dtype=torch.int64, device=model.device) for size in sizes]
            for _ in range(2)
        )
        self._scales = ValueScales(model)

    def add_document(self, *batches: dict[str, Any]) -> None:
        """Count the reads of one document.

        Args:
            batches: The rows of the document in one batch, or in several batches if memory is
                short: `input_ids`, `position_ids` and `segment_ids`, int64 (B, T), as
                `triptych.datamodules.batches.packing.collate_rows` lays them out.

        Raises:
            ValueError: if the document differs in number or length of rows from earlier ones.
        """
        num_rows = sum(batch["input_ids"].shape[0] for batch in batches)
        self._refuse_another_size(num_rows, {batch["input_ids"].shape[1] for batch in batches})
        counts = [torch.zeros_like(total) for total in self._counts]
        for batch in batches:
            self._add_reads(batch, counts)
            self._num_positions += batch["input_ids"].numel()
            self._num_tokens += int((batch["segment_ids"] > 0).sum())
        self._num_rows += num_rows
        self.num_documents += 1
        for table, counts_S in enumerate(counts):
            self._counts[table] += counts_S
            self._document_frequencies[table] += counts_S > 0

    def reduce(self, sum_over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Sum the counts of all ranks; each rank has counted different documents, or none.

        Args:
            sum_over_ranks: Maps a tensor on the model's device to its sum over ranks.
        """
        sums = [self.num_documents, self._num_tokens, self._num_rows, self._num_positions]
        totals = sum_over_ranks(
            torch.tensor(sums, device=self.model.device, dtype=torch.int64)
        ).tolist()
        self.num_documents, self._num_tokens, self._num_rows, self._num_positions = totals
        self._counts = [sum_over_ranks(counts) for counts in self._counts]
        self._document_frequencies = [sum_over_ranks(df) for df in self._document_frequencies]
        self._scales.sums = sum_over_ranks(self._scales.sums)

    def statistics(self) -> BackgroundStatistics:
        """Return the counts so far as a copy.

        Raises:
            ValueError: if there was no document.
        """
        if self.num_documents == 0:
            raise ValueError("no document was added, so there are no background statistics")
        tables = tuple(
            TableStatistics(frequency_S.cpu().clone(), counts_S.cpu().clone(), self.num_documents)
            for frequency_S, counts_S in zip(self._document_frequencies, self._counts, strict=True)
        )
        return BackgroundStatistics(
            tables,
            self._num_tokens,
            *self._document_size(),
            tokenizer_fingerprint(self.tokenizer),
            index_fingerprint(self.model),
            tuple(self._scales.compute()),
        )

    def _add_reads(self, batch: dict[str, Any], counts: list[Tensor]) -> None:
        """Run the model on a batch and add the accesses of its layers to the counts of tables."""
        ids, positions, segments = (
            batch[name].to(self.model.device)
            for name in ("input_ids", "position_ids", "segment_ids")
        )
        numbers = {id(table): number for number, table in enumerate(value_tables(self.model))}
        with _recording(self.model), self._scales, torch.no_grad():
            self.model.base_model(
                input_ids=ids,
                use_cache=False,
                **packed_attention(self.model.config, segments, positions),
            )
            self._scales.add(segments > 0)
            for layer in memory_layers(self.model):
                assert layer.last_ids is not None, "a memory layer that the forward pass left out"
                total = counts[numbers[id(layer.values)]]
                keep_mask = (segments > 0)[..., None, None]
                total += count_accesses(layer.last_ids, keep_mask, layer.values.num_slots)

    def _document_size(self) -> tuple[int, int]:
        """Return rows and tokens per row; from sums, since some ranks may have had no document."""
        return self._num_rows // self.num_documents, self._num_positions // self._num_rows

    def _refuse_another_size(self, num_rows: int, widths: set[int]) -> None:
        size = self._document_size() if self.num_documents else (num_rows, min(widths))
        if num_rows != size[0] or widths != {size[1]}:
            raise ValueError(
                f"a background document has {num_rows} rows of {sorted(widths)} tokens, where "
                f"{size[0]} rows of {size[1]} were expected: how many documents read a slot "
                "depends on their size, so take them all of one size, from packed data"
            )


@contextmanager
def _recording(model: PreTrainedModel) -> Iterator[None]:
    """Record the accesses in evaluation mode; restore mode and records on exit."""
    layers = memory_layers(model)
    modes = [(module, module.training) for module in model.modules()]
    records = [(layer, layer.recording, layer.last_ids) for layer in layers]
    try:
        model.eval()
        for layer in layers:
            layer.recording, layer.last_ids = True, None
        yield
    finally:
        for module, training in modes:
            module.training = training
        for layer, recording, last_ids in records:
            layer.recording, layer.last_ids = recording, last_ids
