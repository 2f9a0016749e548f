"""Means of several numbers over completions.

Shapes: B completions, N names.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric


class CompletionMeans(SummedMetric):
    """Means of several numbers over all completions, without values that are not finite.

    Args:
        names: Names of the numbers.
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = CompletionMeans(["reward"])
    >>> metric.update({"reward": torch.tensor([1.0, 0.0, torch.nan])})
    >>> metric.compute()["reward"].item()
    0.5
    """

    total_N: Tensor
    count_N: Tensor

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_sum("total_N", torch.float64, (len(self.names),))
        self.add_sum("count_N", torch.int64, (len(self.names),))

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, one with a nan, one empty."""
        return cls(["reward", "length"]), [
            (
                {
                    "reward": torch.tensor([0.25, torch.nan], dtype=torch.float32),
                    "length": torch.tensor([3, 4]),
                },
            ),
            ({"reward": torch.tensor([0.5], dtype=torch.float32), "length": torch.tensor([8])},),
            (
                {
                    "reward": torch.zeros(0, dtype=torch.float32),
                    "length": torch.zeros(0, dtype=torch.float32),
                },
            ),
        ]

    def update(self, values: Mapping[str, Tensor]) -> None:
        """Add completions.

        Args:
            values: For each name (B,) numbers.
        """
        columns = [values[name].detach().double().to(self.device) for name in self.names]
        kept = [column[column.isfinite()] for column in columns]
        self.total_N = self.total_N + torch.stack([column.sum() for column in kept])
        counts = [len(column) for column in kept]
        self.count_N = self.count_N + torch.tensor(counts, device=self.device, dtype=torch.int64)

    def compute(self) -> dict[str, Tensor]:
        """Return the mean of each number, float64; nan without values."""
        return dict(zip(self.names, self.total_N / self.count_N, strict=True))
