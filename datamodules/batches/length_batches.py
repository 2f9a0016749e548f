"""Batches of rows of similar length, to pad little, on any number of processes.

Shapes: N rows, B rows of a batch, P longest prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from triptych.datamodules.batches.resumable_loader import Shard


@dataclass(frozen=True, slots=True)
class LengthBatch:
    """Rows that the model scores together.

    Args:
        rows: Their indices.
        counts: False if the batch only keeps a process in step with the others; ignore its scores.
    """

    rows: tuple[int, ...]
    counts: bool = True


def length_batches(
    lengths: Sequence[int], items: Sequence[int], tokens_per_batch: int, shard: Shard
) -> list[LengthBatch]:
    """Sort rows into the batches of this process, the longest first.

    Each row is in one batch of one process. Rows of one item stay on one process, so that a score
    over all of them (the likeliest of several endings) needs no communication. Every process gets
    equally many batches, as sharded models need.

    Args:
        lengths: Tokens of each row, (N,).
        items: Item of each row, (N,).
        tokens_per_batch: Maximum number of tokens in a batch with padding; a longer row is a batch
            by itself.
        shard: The share of this process.

    Returns:
        The batches; empty without rows.

    >>> [batch.rows for batch in length_batches([3, 9, 4, 2], [0, 1, 2, 3], 10, Shard())]
    [(1,), (2, 0), (3,)]
    """
    if not lengths:
        return []
    longest: dict[int, int] = {}
    for item, length in zip(items, lengths, strict=True):
        longest[item] = max(length, longest.get(item, 0))
    # Assigned from the longest down, so that all processes have about the same load.
    dealt = sorted(longest, key=lambda item: (-longest[item], item))
    rank_of = {item: place % shard.world_size for place, item in enumerate(dealt)}
    plans = []
    for rank in range(shard.world_size):
        rows = [row for row, item in enumerate(items) if rank_of[item] == rank]
        rows.sort(key=lambda row: (-lengths[row], row))
        plans.append(_fill(rows, lengths, tokens_per_batch))
    own = plans[shard.rank]
    filler = LengthBatch((own or plans[0])[-1].rows, counts=False)
    return own + [filler] * (max(map(len, plans)) - len(own))


def left_padded(
    prompts: Sequence[np.ndarray | Sequence[int]], pad_id: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay prompts out, one a row, padded on the left, to generate from.

    Args:
        prompts: Token ids of each prompt, (B,).
        pad_id: Fills the rows on the left.

    Returns:
        prompt_ids int64 (B, P), and prompt_mask int64 (B, P): 1 where `prompt_ids` is no padding.
    """
    shape = (len(prompts), max(len(prompt) for prompt in prompts))
    prompt_ids = torch.full(shape, pad_id, dtype=torch.int64)
    prompt_mask = torch.zeros(shape, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        prompt_ids[row, -len(prompt) :] = torch.from_numpy(np.asarray(prompt, np.int64))
        prompt_mask[row, -len(prompt) :] = 1
    return prompt_ids, prompt_mask


def _fill(rows: list[int], lengths: Sequence[int], tokens_per_batch: int) -> list[LengthBatch]:
    """Cut rows, sorted from the longest down, into batches."""
    batches, start = [], 0
    while start < len(rows):
        count = max(1, tokens_per_batch // lengths[rows[start]])
        batches.append(LengthBatch(tuple(rows[start : start + count])))
        start += count
    return batches
