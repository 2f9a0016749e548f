"""The reads of the value tables in a training step, without those of padding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.models.remember.values.value_table import ValueTable
from triptych.objectives.remember.slot_scores import count_accesses

# Shapes: B tokens of a micro-batch, K slots that a token reads in all heads, S slots

#: Keys of a batch that mark padding by 0, in order of preference.
MASKS = ("segment_ids", "attention_mask")


class TrainingReads:
    """Counts the accesses behind the gradients of an optimizer step.

    These are the reads that the tables keep for their gradient, so only forward passes with a
    backward count. Sampling, validation and steps without a backward do not count. A pass that
    gradient checkpointing runs twice counts once.

    Padding is found in the batch, after its backward. Where a model pads by itself, it tells the
    tables (`counting_only`), and its padding leaves no reads.

    Args:
        tables: Value tables in `selected_rows` mode.
    """

    def __init__(self, tables: list[ValueTable]) -> None:
        self.tables = tables
        self._keep_masks: list[list[Tensor | None]] = []
        self.clear()

    def note(self, batch: Any) -> None:
        """Remember the padding of a batch, after its backward.

        Args:
            batch: With `segment_ids` or `attention_mask` (0 is padding) of as many positions as a
                layer has read; otherwise all positions count.
        """
        for table, keep_masks in zip(self.tables, self._keep_masks, strict=True):
            for reads in table.reads[len(keep_masks) :]:
                keep_masks.append(keep_mask(batch, len(reads.ids_BK)))

    def counts(self) -> list[Tensor]:
        """Count the accesses of each table's slots since the last `clear`, int64 (S,)."""
        return [
            _counts(table, keep_masks)
            for table, keep_masks in zip(self.tables, self._keep_masks, strict=True)
        ]

    def clear(self) -> None:
        """Forget all reads, at the end of a step."""
        for table in self.tables:
            table.clear_reads()
        self._keep_masks = [[] for _ in self.tables]


def keep_mask(batch: Any, num_tokens: int) -> Tensor | None:
    """Mark the text of a batch, bool (B,) with B = `num_tokens`; None if the batch has no mask.

    >>> keep_mask({"attention_mask": torch.tensor([[1, 1, 0]])}, 3)
    tensor([ True,  True, False])
    """
    if not isinstance(batch, Mapping):
        return None
    for name in MASKS:
        mask = batch.get(name)
        if isinstance(mask, Tensor) and mask.ndim == 2 and mask.numel() == num_tokens:
            return mask.flatten() > 0
    return None


def _kept(ids_BK: Tensor, keep_B: Tensor | None) -> Tensor:
    if keep_B is None or keep_B.all():
        return ids_BK.flatten()  # without a copy
    return ids_BK[keep_B].flatten()


def _counts(table: ValueTable, keep_masks: list[Tensor | None]) -> Tensor:
    if table.weight.device.type != "cpu":
        counts_S = torch.zeros(table.num_slots, dtype=torch.int64, device=table.weight.device)
        for reads, keep_B in zip(table.reads, keep_masks, strict=True):
            keep_B1 = None if keep_B is None else keep_B.unsqueeze(1)
            counts_S += count_accesses(reads.ids_BK, keep_B1, table.num_slots)
        return counts_S
    read = [
        _kept(reads.ids_BK, keep_B) for reads, keep_B in zip(table.reads, keep_masks, strict=True)
    ]
    nothing = torch.empty(0, dtype=torch.int64, device=table.weight.device)
    ids_M = read[0] if len(read) == 1 else torch.cat([nothing, *read])
    return count_accesses(ids_M, None, table.num_slots)
