"""The base of every metric whose whole state is a handful of sums."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torchmetrics import Metric


class SummedMetric(Metric):
    """A torchmetric that keeps sums only, so any split of the data gives the same value.

    Sums add up over batches, over ranks and over merged copies alike. A subclass declares them with
    `add_sum`, adds to them in `update` *out of place* (a state made in inference mode must not be
    changed outside it), and divides in `compute`. It also gives an `example`, with which the
    contract tests find and check it.

    Unlike a plain torchmetric, one that has seen nothing yet computes without a warning: no data is
    an ordinary state (an empty shard, an epoch before the first validation) and its ratios are nan.
    """

    full_state_update = False
    is_differentiable = False

    @classmethod
    @abstractmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and two or more batches of arguments for its `update`."""

    def add_sum(self, name: str, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> None:
        """Declare a state that starts at zero and is summed over batches and ranks.

        Args:
            name: Attribute that will hold it.
            dtype: int64 for counts, float64 for everything else: sums run over whole epochs.
            shape: Its shape; a scalar by default.
        """
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Always True; torchmetrics warns in `compute` where it is not."""
        return True

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric of this class, or a dict of them, to this one's."""
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics keeps the value from before the merge
