"""#Circles over several orders: the mean number of circles, and its spread."""

from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.circles import Algorithm, Circles
from triptych.metrics.diversify.prompt_metric import scalars


class CirclesOverOrders(Circles):
    """The mean of #Circles over seeded orders of the molecules, and the spread of one order.

    The subset that an algorithm finds depends on the order. Two sets differ only if their means
    differ by more than the spread of an order allows: s / sqrt(orders) is the standard error of a
    mean. Orders are shuffles of the different fingerprints, the same on any number of ranks.

    Args:
        threshold: t, a Tanimoto distance; 0.75 for #Circles, 0.65 for diverse hits.
        num_orders: Number of orders, at least 2.
        algorithm: The algorithm that finds a subset; see `circles`.
        radius: Radius of the Morgan fingerprint, in bonds.
        num_bits: Length of the fingerprint.
        include_equal: Whether to take a molecule at a distance of exactly t; not for `maxmin`.
        seed: Seed of the orders.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If there are fewer than 2 orders, or as `Circles`.

    >>> metric = CirclesOverOrders()
    >>> metric.update(["CCO", "CCO", "c1ccccc1", "Cc1ccccc1"])
    >>> {name: value.item() for name, value in metric.compute().items()}
    {'circles': 2.0, 'circles_std': 0.0}
    """

    def __init__(
        self,
        threshold: float = 0.75,
        num_orders: int = 5,
        algorithm: Algorithm = "leader",
        radius: int = 2,
        num_bits: int = 1024,
        include_equal: bool = False,
        seed: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(threshold, algorithm, radius, num_bits, include_equal, seed, **kwargs)
        if num_orders < 2:
            raise ValueError(f"num_orders is {num_orders}: set it to at least 2, for a spread.")
        self.num_orders = num_orders

    @classmethod
    def diverse_hits(cls, algorithm: Algorithm = "leader", **kwargs: Any) -> Self:
        """Return the definition of Renz et al. (2024): t = 0.65, 2048 bits. Give it hits alone."""
        return cls(0.65, algorithm=algorithm, num_bits=2048, **kwargs)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        return cls(num_orders=3), [
            (["CCO", "c1ccccc1", "C1CC"],),
            (["CCO", "Cc1ccccc1", "CC(=O)NC", "CCC(=O)NC"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:  # type: ignore[override]
        """Add SMILES strings; invalid ones are left out."""
        super().update(smiles)

    def compute(self) -> dict[str, Tensor]:  # type: ignore[override]
        """Return float64 scalars.

        Returns:
            circles: Mean over the orders; 0 without molecules.
            circles_std: Standard deviation of one order (divided by orders - 1).
        """
        fingerprints = self.fingerprints
        packed = torch.unique(fingerprints, dim=0) if len(fingerprints) else fingerprints
        counts = [len(self._chosen(packed[order])) for order in self._orders(len(packed))]
        values = {"circles": float(np.mean(counts)), "circles_std": float(np.std(counts, ddof=1))}
        return scalars(values, self.device)

    def _orders(self, num_molecules: int) -> list[Tensor]:
        generators = [np.random.default_rng((self.seed, i)) for i in range(self.num_orders)]
        return [torch.from_numpy(rng.permutation(num_molecules)) for rng in generators]
