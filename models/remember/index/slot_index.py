"""The seam between queries and slots: any way of finding the best slots is a `SlotIndex`."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from triptych.models.remember.memory_config import MemoryConfig

# Shapes: B queries, H heads, D query width, K kept slots, S slots


class SlotIndex(nn.Module, ABC):
    """Finds, for each query, the K slots with the highest scores.

    The softmax over slots always runs on the scores that `score` defines, so gradients and access
    counts do not depend on how `search` finds its candidates.

    Args:
        num_slots: S, the number of slots that can be found.
        num_heads: H, the number of independent queries a token asks.
        query_dim: D, the width of one head's query.
    """

    #: True when `search` always returns the true top K.
    exact: bool = False

    def __init__(self, num_slots: int, num_heads: int, query_dim: int) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.num_heads = num_heads
        self.query_dim = query_dim

    @classmethod
    @abstractmethod
    def from_config(cls, memory: MemoryConfig) -> "SlotIndex":
        """Build the index a (resolved) memory config asks for."""

    @abstractmethod
    def search(self, query_BHD: Tensor, num_kept: int) -> Tensor:
        """Find the slots with the highest scores; no gradient.

        Returns:
            ids_BHK: int64 in [0, S), best first.
        """

    @abstractmethod
    def score(self, query_BHD: Tensor, ids_BHK: Tensor) -> Tensor:
        """Score the given slots exactly; differentiable in the queries and the keys.

        Returns:
            scores_BHK: unnormalised scores, float.
        """

    def lookup(self, query_BHD: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
        """Find the best slots and their differentiable scores.

        An index that holds the scores already when its search ends overrides this: gathering the
        keys a second time costs several times more.

        Returns:
            ids_BHK: int64 in [0, S), best first. scores_BHK: as `score`.
        """
        with torch.no_grad():
            ids_BHK = self.search(query_BHD, num_kept)
        return ids_BHK, self.score(query_BHD, ids_BHK)

    def extra_repr(self) -> str:
        """Sizes, for `print(model)`."""
        return f"num_slots={self.num_slots}, num_heads={self.num_heads}, query_dim={self.query_dim}"
