"""The interface between queries and slots: every method of finding the best slots."""

import inspect
from abc import ABC, abstractmethod
from typing import Any, Self

import torch
from torch import Tensor, nn

from triptych.models.remember.memory_config import MemoryConfig

# Shapes: B queries, H heads, D query width, K kept slots, S slots


class SlotIndex(nn.Module, ABC):
    """Finds the K slots with the highest scores for each query.

    The softmax over slots always runs on the scores of `score`, so gradients and access counts do
    not depend on the way `search` finds its candidates. In eval mode, equal queries must give equal
    results.

    A new index implements `search` and `score`, in any module: `memory.index` names its class, and
    `memory.index_args` holds the further arguments of its constructor. See
    `triptych.models.remember.memory_lm.load_memory_lm` for loading a model that has such an index.

    Args:
        num_slots: S, the number of slots.
        num_heads: H, the number of independent queries per token.
        query_dim: D, the width of one head's query.
    """

    #: True when `search` always returns the true top K.
    exact: bool = False
    #: Memory layers call an index outside autocast (see `weights_cast_once`).
    outside_autocast: bool = True

    def __init__(self, num_slots: int, num_heads: int, query_dim: int) -> None:
        super().__init__()
        self.num_slots = num_slots
        self.num_heads = num_heads
        self.query_dim = query_dim

    @classmethod
    def from_config(cls, memory: MemoryConfig) -> Self:
        """Build the index that a resolved memory config asks for.

        The constructor gets `num_slots`, `num_heads`, `query_dim`, the settings in
        `memory.index_args` and, if it has a parameter of that name, `qk_norm`.

        Raises:
            ValueError: if the settings are not those of the constructor.
        """
        key_dim, _ = memory.sizes()
        sizes = {"num_slots": memory.num_slots, "num_heads": memory.num_heads, "query_dim": key_dim}
        if "qk_norm" in inspect.signature(cls).parameters:
            sizes["qk_norm"] = memory.qk_norm
        elif memory.qk_norm:
            raise ValueError(
                f"memory.qk_norm is set, but {cls.__name__} has no such option: set it to "
                "false, or give the constructor a parameter qk_norm"
            )
        return cls(**with_index_args(cls, memory, sizes))

    @abstractmethod
    def search(self, query_BHD: Tensor, num_kept: int) -> Tensor:
        """Find the slots with the highest scores; no gradient.

        Returns:
            ids_BHK: int64 in [0, S), best first.
        """

    @abstractmethod
    def score(self, query_BHD: Tensor, ids_BHK: Tensor) -> Tensor:
        """Score the given slots exactly, differentiable in the queries and the keys.

        Returns:
            scores_BHK: unnormalised scores, float.
        """

    def lookup(self, query_BHD: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
        """Find the best slots and their differentiable scores.

        Override this if the search computes the scores already: gathering the keys again costs
        several times more.

        Returns:
            ids_BHK: int64 in [0, S), best first. scores_BHK: as `score`.
        """
        with torch.no_grad():
            ids_BHK = self.search(query_BHD, num_kept)
        return ids_BHK, self.score(query_BHD, ids_BHK)

    def extra_repr(self) -> str:
        """Return the sizes, for `print(model)`."""
        return f"num_slots={self.num_slots}, num_heads={self.num_heads}, query_dim={self.query_dim}"


def with_index_args(
    constructor: type, memory: MemoryConfig, given: dict[str, Any]
) -> dict[str, Any]:
    """Add `memory.index_args` to a constructor's other arguments.

    Args:
        constructor: The index's class, or that of its settings.
        memory: The memory config.
        given: Arguments that follow from other options of the memory config.

    Raises:
        ValueError: if a setting is unknown, follows from `given`, or is missing.
    """
    signature = inspect.signature(constructor)
    try:
        signature.bind(**given, **memory.index_args)
    except TypeError as error:
        names = [name for name in signature.parameters if name not in given]
        raise ValueError(
            f"memory.index_args do not fit {constructor.__name__}: {error}. Its settings: "
            f"{', '.join(names) or 'none'}"
        ) from error
    return given | memory.index_args
