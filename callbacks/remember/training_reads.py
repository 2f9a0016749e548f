"""What a training step read of the value tables, at positions that are not padding."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from triptych.models.remember.values.value_table import ValueTable
from triptych.objectives.remember.slot_scores import count_accesses

# Shapes: B tokens of a micro-batch, K slots that a token reads in all heads, S slots

#: What says where a batch is padding, in this order; above 0 is text.
MASKS = ("segment_ids", "attention_mask")


class TrainingReads:
    """Counts the accesses behind the gradients of an optimizer step.

    They are those that the tables keep for their gradient: of every forward pass that the loss came
    from, and of no other. Sampling, validation and steps without a backward never count, and a
    pass that gradient checkpointing runs twice counts once.

    Args:
        tables: Value tables in `selected_rows` mode.
    """

    def __init__(self, tables: list[ValueTable]) -> None:
        self.tables = tables
        self._keep_masks: list[list[Tensor | None]] = []
        self.clear()

    def note(self, batch: Any) -> None:
        """After a backward: remember where the batch behind it is padding.

        Args:
            batch: With `segment_ids` or `attention_mask` (0 is padding) of as many positions as a
                layer read; otherwise all positions count.
        """
        for table, keep_masks in zip(self.tables, self._keep_masks, strict=True):
            for reads in table.reads[len(keep_masks) :]:
                keep_masks.append(keep_mask(batch, len(reads.ids_BK)))

    def counts(self) -> list[Tensor]:
        """Accesses of each table's slots since the last `clear`, int64 (S,)."""
        return [
            _counts(table, keep_masks)
            for table, keep_masks in zip(self.tables, self._keep_masks, strict=True)
        ]

    def clear(self) -> None:
        """Begin a step."""
        for table in self.tables:
            table.clear_reads()
        self._keep_masks = [[] for _ in self.tables]


def keep_mask(batch: Any, num_tokens: int) -> Tensor | None:
    """Where a batch is text, bool (B,), B being `num_tokens`; None if it does not say.

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


def _counts(table: ValueTable, keep_masks: list[Tensor | None]) -> Tensor:
    read = [
        (reads.ids_BK if keep_B is None or keep_B.all() else reads.ids_BK[keep_B]).flatten()
        for reads, keep_B in zip(table.reads, keep_masks, strict=True)
    ]
    nothing = torch.empty(0, dtype=torch.int64, device=table.weight.device)
    ids_M = read[0] if len(read) == 1 else torch.cat([nothing, *read])
    return count_accesses(ids_M, None, table.num_slots)
