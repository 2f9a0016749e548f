"""The base of metrics with a state of sums."""

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Self

import torch
from torchmetrics import Metric

from triptych.metrics.composable_metric import ComposableMetric


class SummedMetric(ComposableMetric):
    """A metric that keeps sums only, so any split of the data gives the same value.

    Sums are added over batches, over ranks and over merged copies. A subclass declares them with
    `add_sum`, adds to them in `update` *out of place* (a state made in inference mode must not be
    changed outside it), and divides in `compute`. It also provides an `example` for the contract
    tests.

    Unlike a plain torchmetric it computes without a warning before the first update. No data is an
    ordinary state (an empty shard, an epoch before the first validation), with ratios of nan.
    """

    full_state_update = False
    is_differentiable = False

    @classmethod
    @abstractmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and two or more batches of arguments for its `update`."""

    def add_sum(self, name: str, dtype: torch.dtype, shape: tuple[int, ...] = ()) -> None:
        """Add a state that starts at zero and is summed over batches and ranks.

        Args:
            name: Name of its attribute.
            dtype: int64 for counts, float64 for everything else: sums run over whole epochs.
            shape: Shape; a scalar by default.
        """
        self.add_state(name, torch.zeros(shape, dtype=dtype), dist_reduce_fx="sum")

    @property
    def update_called(self) -> bool:
        """Always True, since torchmetrics warns in `compute` otherwise."""
        return True

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the state of another metric of this class and these settings.

        Args:
            incoming_state: The metric, or its `metric_state`.

        Raises:
            ValueError: If its class or its settings differ.
        """
        super().merge_state(incoming_state)
        self._computed = None  # torchmetrics would keep the value from before the merge
