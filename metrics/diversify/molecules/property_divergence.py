"""The KL divergence score of GuacaMol: how well properties are distributed like a reference's.

For each of nine properties, and for the similarity of each molecule to its nearest neighbour in its
own set, the divergence KL(reference || samples) is estimated (Brown et al. 2019). The score is the
mean of exp(-KL), so 1 for equal distributions. Molecules are without stereochemistry and unique.
"""

# Shapes: N molecules, P properties

import math
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.diversify.molecules.fingerprints import morgan_fingerprints
from triptych.metrics.diversify.molecules.molecule_ids import text_ids
from triptych.metrics.diversify.molecules.tanimoto import symmetric_tiles
from triptych.metrics.diversify.prompt_metric import scalars
from triptych.metrics.gathered_metric import GatheredMetric
from triptych.models.diversify.molecules.molecule import canonical_smiles, read_molecule

CONTINUOUS = ("BertzCT", "MolLogP", "MolWt", "TPSA")
COUNTS = (
    *("NumHAcceptors", "NumHDonors", "NumRotatableBonds"),
    *("NumAliphaticRings", "NumAromaticRings"),
)
_NUM_BITS = 4096
_FLOOR = 1e-10
_NUM_POINTS, _NUM_BINS = 1000, 10


def density_divergence(reference_N: np.ndarray, sample_N: np.ndarray) -> float:
    """Compute KL(reference || sample) of Gaussian kernel densities at 1000 points of their range.

    Args:
        reference_N: Values of the reference.
        sample_N: Values of the samples.

    Returns:
        Nats; nan where a density is not defined, that is, for fewer than two different values.
    """
    from scipy.stats import gaussian_kde

    if any(len(values) < 2 or np.ptp(values) == 0 for values in (reference_N, sample_N)):
        return math.nan
    both = np.concatenate([reference_N, sample_N])
    points = np.linspace(both.min(), both.max(), _NUM_POINTS)
    p, q = (gaussian_kde(values)(points) for values in (reference_N, sample_N))
    return _kl_nats(p, q)


def count_divergence(reference_N: np.ndarray, sample_N: np.ndarray) -> float:
    """Compute KL(reference || sample) of histograms with ten bins between the reference's limits.

    Samples outside of these limits are not counted, as in the published code.

    Args:
        reference_N: Values of the reference.
        sample_N: Values of the samples.

    Returns:
        Nats; nan without values.
    """
    if not len(reference_N) or not len(sample_N):
        return math.nan
    counts, edges = np.histogram(reference_N, bins=_NUM_BINS)
    found, _ = np.histogram(sample_N, bins=edges)
    widths = np.diff(edges)
    return _kl_nats(counts / counts.sum() / widths, found / max(1, found.sum()) / widths)


class PropertyDivergence(GatheredMetric):
    """GuacaMol's KL divergence score of the different valid molecules seen.

    Deviations: the reference is taken whole, where GuacaMol draws as many molecules as were
    sampled. A property that has one value in a set, where GuacaMol fails, scores nan and is left
    out of the mean.

    Args:
        reference: SMILES of the training set, such as 10,000 of them at random. Their pairs are
            compared, so the time grows with the square of their number.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a string of the reference is invalid, or there are fewer than two molecules.

    >>> drugs = ["CC(=O)Oc1ccccc1C(=O)O", "CC(=O)Nc1ccc(O)cc1", "CC(C)Cc1ccc(C(C)C(=O)O)cc1"]
    >>> metric = PropertyDivergence(drugs)
    >>> metric.update(drugs)
    >>> round(metric.compute()["kl_score"].item(), 6)
    1.0
    """

    higher_is_better = True

    def __init__(self, reference: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        ids, properties, packed = _described(reference)
        if len(ids) < len(reference):
            place = next(i for i, text in enumerate(reference) if read_molecule(text) is None)
            raise ValueError(
                f"reference[{place}] is {reference[place]!r}, which is not a molecule: give valid "
                "SMILES"
            )
        properties, packed = _unique(ids, properties, packed)
        if len(properties) < 2:
            raise ValueError("the reference has fewer than two different molecules: give more.")
        self._reference_PN = _with_nearest(properties, packed)
        self.add_row_state("ids", torch.int64)
        self.add_row_state("properties", torch.float64)
        self.add_row_state("packed", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches, with a repeat and an invalid string."""
        reference = ["CCO", "c1ccccc1C", "CC(=O)NCc1ccccc1", "C1CCCCC1N"]
        return cls(reference), [
            (["CCO", "Cc1ccccc1", "C1CC"],),
            (["OCC", "CC(=O)NC", "NCC1CCCCC1"],),
            ([],),
        ]

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out."""
        ids, properties, packed = _described(smiles)
        self.append_rows("ids", ids)
        self.append_rows("properties", properties)
        self.append_rows("packed", packed)

    def compute(self) -> dict[str, Tensor]:
        """Return float64 scalars.

        Returns:
            kl_score: Mean of exp(-KL) over what has a divergence, in [0, 1]; nan without one.
            kl_nats_<property>: The divergences, with `internal_similarity` among them.
        """
        num_properties = len(CONTINUOUS) + len(COUNTS)
        ids = self.rows("ids").view(-1, 2).cpu()
        properties = self.rows("properties").view(-1, num_properties).cpu()
        packed = self.rows("packed").view(-1, _NUM_BITS // 64).cpu()
        values = _with_nearest(*_unique(ids, properties, packed))
        found = {}
        for name, reference_N in self._reference_PN.items():
            measure = count_divergence if name in COUNTS else density_divergence
            found[f"kl_nats_{name}"] = measure(reference_N, values[name])
        known = [math.exp(-nats) for nats in found.values() if not math.isnan(nats)]
        score = math.fsum(known) / len(known) if known else math.nan
        return scalars({"kl_score": score, **found}, self.device)


def _described(smiles: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
    """Describe the valid molecules without stereochemistry: ids, properties, fingerprints."""
    from rdkit.Chem import Descriptors

    plain = [text for text in (canonical_smiles(s, keep_stereo=False) for s in smiles) if text]
    molecules = [read_molecule(text) for text in plain]
    kept = [(text, m) for text, m in zip(plain, molecules, strict=True) if m is not None]
    names = (*CONTINUOUS, *COUNTS)
    rows = [[float(getattr(Descriptors, name)(m)) for name in names] for _, m in kept]
    properties = torch.tensor(rows, dtype=torch.float64).view(-1, len(names))
    packed = morgan_fingerprints([text for text, _ in kept], 2, _NUM_BITS)[1]
    return text_ids(text for text, _ in kept), properties.nan_to_num(0.0, 0.0, 0.0), packed


def _unique(ids: Tensor, properties: Tensor, packed: Tensor) -> tuple[Tensor, Tensor]:
    """Take each molecule once, in the order of ids."""
    _, first = np.unique(ids.numpy(), axis=0, return_index=True)
    places = torch.from_numpy(first)
    return properties[places], packed[places]


def _with_nearest(properties_NP: Tensor, packed_NW: Tensor) -> dict[str, np.ndarray]:
    """Name the properties, and add the similarity to the nearest other molecule of the set."""
    nearest_N = torch.zeros(len(packed_NW), dtype=torch.float32)
    for rows, columns, similarity_RC in symmetric_tiles(packed_NW, both_empty=0.0):
        if rows == columns:
            similarity_RC.fill_diagonal_(0.0)
        for side, axis in ((rows, 1), (columns, 0)):
            nearest_N[side] = torch.maximum(nearest_N[side], similarity_RC.amax(axis))
    columns_by_name = zip((*CONTINUOUS, *COUNTS), properties_NP.T.numpy(), strict=True)
    return {**dict(columns_by_name), "internal_similarity": nearest_N.double().numpy()}


def _kl_nats(p: np.ndarray, q: np.ndarray) -> float:
    p, q = p + _FLOOR, q + _FLOOR
    p, q = p / p.sum(), q / q.sum()
    return max(0.0, float((p * np.log(p / q)).sum()))
