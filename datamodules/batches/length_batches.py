"""Batches of rows of similar length, so that little is padded, for any number of processes.

Shapes: N rows, B rows of a batch, P longest prompt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from triptych.datamodules.batches.resumable_loader import Shard


@dataclass(frozen=True, slots=True)
class LengthBatch:
    """Rows that go through the model together.

    Args:
        rows: Their indices.
        counts: False where the batch only keeps a process busy for as long as the others; leave its
            scores out.
    """

    rows: tuple[int, ...]
    counts: bool = True


def length_batches(
    lengths: Sequence[int], items: Sequence[int], tokens_per_batch: int, shard: Shard
) -> list[LengthBatch]:
    """Sort rows into this process's batches, the longest first.

    Each row is in one batch of one process. Rows of one item stay on one process, so that scores
    which need all of them (the likeliest of several endings) need no other. Every process gets
    equally many batches, as sharded models need.

    Args:
        lengths: Tokens of each row, (N,).
        items: Which item each row belongs to, (N,).
        tokens_per_batch: Most tokens in a batch, padding included; a longer row is alone.
        shard: This process's part.

    Returns:
        The batches; without any row, none.

    >>> [batch.rows for batch in length_batches([3, 9, 4, 2], [0, 1, 2, 3], 10, Shard())]
    [(1,), (2, 0), (3,)]
    """
    if not lengths:
        return []
    longest: dict[int, int] = {}
    for item, length in zip(items, lengths, strict=True):
        longest[item] = max(length, longest.get(item, 0))
    # Dealt out from the longest down, so that all processes have about as much to do.
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


def left_padded(prompts: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Lay prompts out one a row, ending together, to generate from.

    Args:
        prompts: Token ids of each, (B,).
        pad_id: Fills the rows on the left.

    Returns:
        prompt_ids int64 (B, P), and prompt_mask int64 (B, P): 1 where it is not padding.
    """
    shape = (len(prompts), max(len(prompt) for prompt in prompts))
    prompt_ids = torch.full(shape, pad_id, dtype=torch.int64)
    prompt_mask = torch.zeros(shape, dtype=torch.int64)
    for row, prompt in enumerate(prompts):
        prompt_ids[row, -len(prompt) :] = torch.from_numpy(prompt.astype(np.int64))
        prompt_mask[row, -len(prompt) :] = 1
    return prompt_ids, prompt_mask


def _fill(rows: list[int], lengths: Sequence[int], tokens_per_batch: int) -> list[LengthBatch]:
    """Cut rows, the longest first, into batches."""
    batches, start = [], 0
    while start < len(rows):
        count = max(1, tokens_per_batch // lengths[rows[start]])
        batches.append(LengthBatch(tuple(rows[start : start + count])))
        start += count
    return batches
