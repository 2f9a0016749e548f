"""FCD: the Frechet distance of ChemNet's activations (Preuer et al. 2018, 1803.09518).

ChemNet is a network that predicts bioactivities from SMILES. Its 512 activations of a set are
summarised by mean and covariance, and two such summaries compared as Gaussians:
|m - n|^2 + tr(S + T - 2 (S T)^(1/2)).
"""

# Shapes: N molecules, D = 512 activations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.diversify.prompt_metric import scalars
from triptych.metrics.summed_metric import SummedMetric
from triptych.models.diversify.molecules.molecule import canonical_smiles

WIDTH = 512


def frechet_distance(
    mean_D: Tensor, covariance_DD: Tensor, other_D: Tensor, other_DD: Tensor
) -> float:
    """Compute the squared Frechet distance of two Gaussians.

    tr (S T)^(1/2) is the sum of the roots of the eigenvalues of S^(1/2) T S^(1/2), which is
    symmetric, so singular covariances (fewer molecules than activations) need no correction.

    Args:
        mean_D: Mean of one.
        covariance_DD: Its covariance S.
        other_D: Mean of the other.
        other_DD: Its covariance T.

    >>> one = torch.eye(1, dtype=torch.float64)
    >>> frechet_distance(one[0], one, 3 * one[0], 4 * one)  # (3 - 1)^2 + 1 + 4 - 2 * 2
    5.0
    """
    eigenvalues_D, vectors_DD = torch.linalg.eigh(covariance_DD)
    root_DD = vectors_DD * eigenvalues_D.clamp_min(0).sqrt() @ vectors_DD.mT
    product_DD = root_DD @ other_DD @ root_DD
    roots_D = torch.linalg.eigvalsh((product_DD + product_DD.mT) / 2).clamp_min(0).sqrt()
    spread = covariance_DD.trace() + other_DD.trace() - 2 * roots_D.sum()
    return float((mean_D - other_D).square().sum() + spread)


class ChemNetDistance(SummedMetric):
    """FCD of the valid molecules seen from a reference set; 0 for equal distributions.

    Activations, their sums and their products are added up, so memory does not grow with the number
    of molecules. Means of few molecules are biased: compare at equal numbers, such as 10,000.
    Repeats count.

    Args:
        reference: SMILES of the reference set, at least two molecules.
        device: Device of the network.
        batch_size: Molecules given to it at once.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ModuleNotFoundError: Without the extra `fcd`.
        ValueError: If the reference has an invalid string or fewer than two molecules.
    """

    higher_is_better = False
    num_molecules: Tensor
    sum_D: Tensor
    outer_sum_DD: Tensor

    def __init__(
        self, reference: Sequence[str], device: str = "cpu", batch_size: int = 256, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.network_device, self.batch_size = device, batch_size
        canonical = [canonical_smiles(text) for text in reference]
        if None in canonical or len(canonical) < 2:
            raise ValueError(
                f"reference[{canonical.index(None)}] is not a molecule: give valid SMILES"
                if None in canonical
                else "the reference has fewer than two molecules: give more"
            )
        activations_ND = self._activations([text for text in canonical if text is not None])
        self._reference = (activations_ND.mean(0), activations_ND.mT.cov())
        self.add_sum("num_molecules", torch.int64)
        self.add_sum("sum_D", torch.float64, (WIDTH,))
        self.add_sum("outer_sum_DD", torch.float64, (WIDTH, WIDTH))

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        return cls(["CCO", "c1ccccc1", "CC(=O)NC"]), [
            (["CCO", "Cc1ccccc1", "C1CC"],),
            (["CCN"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        canonical = [canonical_smiles(text) for text in smiles]
        activations_ND = self._activations([text for text in canonical if text is not None])
        activations_ND = activations_ND.to(self.sum_D.device)
        self.num_molecules = self.num_molecules + len(activations_ND)
        self.sum_D = self.sum_D + activations_ND.sum(0)
        self.outer_sum_DD = self.outer_sum_DD + activations_ND.mT @ activations_ND

    def compute(self) -> dict[str, Tensor]:
        """Return float64 scalars, nan for fewer than two molecules.

        Returns:
            fcd: The distance, at least 0.
            fcd_score: exp(-0.2 FCD), in [0, 1], as GuacaMol reports it.
        """
        distance = math.nan
        if self.num_molecules >= 2:
            mean_D = self.sum_D / self.num_molecules
            products_DD = self.outer_sum_DD - self.num_molecules * mean_D[:, None] * mean_D
            covariance_DD = products_DD / (self.num_molecules - 1)
            reference_D, reference_DD = (part.to(mean_D.device) for part in self._reference)
            distance = max(0.0, frechet_distance(reference_D, reference_DD, mean_D, covariance_DD))
        return scalars({"fcd": distance, "fcd_score": math.exp(-0.2 * distance)}, self.device)

    def _activations(self, canonical: Sequence[str]) -> Tensor:
        """Compute activations of canonical SMILES, float64 (N, D) on the CPU."""
        if not canonical:
            return torch.zeros(0, WIDTH, dtype=torch.float64)
        network = _network(self.network_device, self.batch_size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # names of numpy 1
            found = network.get_predictions(list(canonical))
        return torch.from_numpy(np.asarray(found, dtype=np.float64))


@cache
def _network(device: str, batch_size: int) -> Any:
    try:
        from fcd_torch import FCD
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"the Frechet ChemNet distance needs {error.name}: install the extra `fcd`."
        ) from error
    return FCD(device=device, n_jobs=1, batch_size=batch_size, canonize=False)
