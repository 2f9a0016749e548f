"""The evenness of accesses to a memory's slots."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric
from triptych.objectives.remember.slot_scores import count_accesses


class SlotUsage(SummedMetric):
    """Counts accesses to each slot of a memory, and summarises their evenness.

    An access is one slot id: a token that reads k slots through each of H heads makes H k of them.
    An update costs one `bincount` of the ids and one pass over the counts.

    Paper: Large Memory Layers with Product Keys, 1907.05242, section 4: the share of slots used,
    and the divergence of their use from uniform, which is ln S minus our entropy. Deviation: all
    accesses have equal weight, where the paper weights them by the softmax. These are the counts by
    which sparse memory finetuning (2510.15103) ranks slots.

    Args:
        num_slots: Size of the memory, S.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `num_slots` is not positive.

    >>> usage = SlotUsage(num_slots=4)
    >>> usage.update(torch.tensor([[0, 2], [0, 3]]), torch.tensor([[True], [True]]))
    >>> {name: round(value.item(), 4) for name, value in usage.compute().items()}
    {'slots_read_share': 0.75, 'usage_entropy_nats': 1.0397,
     'usage_perplexity_share': 0.7071, 'most_read_share': 0.5}
    """

    num_reads: Tensor

    def __init__(self, num_slots: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if num_slots < 1:
            raise ValueError(f"num_slots must be at least 1, got {num_slots}.")
        self.num_slots = num_slots
        self.add_sum("num_reads", torch.int64, (num_slots,))

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches with a mask, without one and with no accesses."""
        return cls(num_slots=6), [
            (torch.tensor([[0, 5], [2, 5]]), torch.tensor([[True], [False]])),
            (torch.tensor([1, 5, 1]),),
            (torch.empty(0, 2, dtype=torch.int64),),
        ]

    def update(self, slot_ids: Tensor, keep_mask: Tensor | None = None) -> None:
        """Count a batch of accesses.

        Args:
            slot_ids: Slots read, integers in [0, S), of any shape, say (B, T, H, k).
            keep_mask: True where an access counts; None: all count. As many dimensions as
                `slot_ids`, each of the same size or 1: (B, T, 1, 1) drops padding tokens.

        Raises:
            ValueError: If an id is out of range, or the mask does not fit the ids.
        """
        # The new counts take the sum, so that the state is never changed in place.
        self.num_reads = count_accesses(slot_ids, keep_mask, self.num_slots).add_(self.num_reads)

    def compute(self) -> dict[str, Tensor]:
        """Summarise the counts of all ranks.

        With p_s the share of all accesses that went to slot s:

        Returns:
            Float64 scalars. `slots_read_share`: slots read at least once over S, in [0, 1].
            `usage_entropy_nats`: -sum_s p_s ln p_s, in [0, ln S]. `usage_perplexity_share`:
            exp(entropy) / S, in [1 / S, 1]; 1 where all slots are read equally often.
            `most_read_share`: max_s p_s, in [1 / S, 1]. Before the first access the share of slots
            read is 0 and the others are nan.
        """
        read_share_S = self.num_reads.double() / self.num_reads.sum()
        entropy_nats = torch.special.entr(read_share_S).sum()
        return {
            "slots_read_share": self.num_reads.count_nonzero().double() / self.num_slots,
            "usage_entropy_nats": entropy_nats,
            "usage_perplexity_share": entropy_nats.exp() / self.num_slots,
            "most_read_share": read_share_S.max(),
        }

    def most_read(self, num_kept: int) -> tuple[Tensor, Tensor]:
        """Find the slots with the most accesses, over all ranks; all of them must call it.

        Args:
            num_kept: n, the number of slots to return.

        Returns:
            `slot_ids`: int64 (n,), most read first, of equal ones the lower id first. `num_reads`:
            int64 (n,), their accesses; 0 for a slot that was never read.

        Raises:
            ValueError: If `num_kept` is not in [1, S].

        >>> usage = SlotUsage(num_slots=4)
        >>> usage.update(torch.tensor([3, 3, 1, 0]))
        >>> usage.most_read(2)
        (tensor([3, 0]), tensor([2, 1]))
        """
        if not 1 <= num_kept <= self.num_slots:
            raise ValueError(f"num_kept must lie in [1, {self.num_slots}], got {num_kept}.")
        needs_sync = self.sync_on_compute and not self._is_synced
        with self.sync_context(
            dist_sync_fn=self.dist_sync_fn, should_sync=needs_sync, should_unsync=needs_sync
        ):
            fewest = self.num_reads.topk(num_kept).values[-1]
            candidate_ids = (self.num_reads >= fewest).nonzero().squeeze(1)
            candidate_reads = self.num_reads[candidate_ids]
            order = candidate_reads.argsort(descending=True, stable=True)[:num_kept]
            return candidate_ids[order], candidate_reads[order]
