"""Rewards that fall as more molecules of the same kind are found.

A filter sorts good molecules into buckets, by scaffold or by molecule, counts them, and multiplies
their reward by a penalty of the count N and the bucket's size m, as REINVENT does (Blaschke et al.
2020; the soft penalties are of Svensson et al. 2024, "Diversity-aware reinforcement learning for de
novo drug design"):

    step      1 while N < m, else 0
    linear    max(0, 1 - N / m)
    sigmoid   1 - 1 / (1 + exp(-(2 N / m - 1) / 0.15))
    erf       1 + erf(sqrt(pi) / m) - erf(sqrt(pi) N / m)
    tanh      1 - tanh(3 (N - 1) / m)

A molecule is counted before it is penalised: N is 1 for the first of its bucket. MARA is applied
afterwards: a penalised reward below the threshold is not augmented.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.models.diversify.molecules.molecule import (
    Mol,
    murcko_scaffold,
    read_molecule,
    write_molecule,
)

# Shapes: B completions

Bucket = Literal["murcko_scaffold", "topological_scaffold", "similar_scaffold", "molecule"]
Penalty = Literal["step", "linear", "sigmoid", "erf", "tanh"]


def penalty(kind: Penalty, count: int, size: int) -> float:
    """Compute the remaining share of a reward with `count` molecules in a bucket of `size`.

    >>> penalty("step", 9, 10), penalty("step", 10, 10), penalty("linear", 3, 10)
    (1.0, 0.0, 0.7)
    """
    if kind == "step":
        return float(count < size)
    if kind == "linear":
        return max(0.0, 1 - count / size)
    if kind == "sigmoid":
        return 1 - 1 / (1 + math.exp(-(2 * min(count, 50 * size) / size - 1) / 0.15))
    if kind == "erf":
        unit = math.sqrt(math.pi) / size
        return 1 + math.erf(unit) - math.erf(unit * count)
    return 1 - math.tanh(3 * (count - 1) / size)


class DiversityFilter:
    """Buckets of good molecules with their counts.

    Args:
        bucket: `murcko_scaffold`: identical Bemis-Murcko scaffolds. `topological_scaffold`: these
            with all atoms carbon and all bonds single. `similar_scaffold`: a scaffold joins the
            known one with the most similar atom pairs (Dice), if `min_similarity` is reached.
            `molecule`: the molecule itself.
        bucket_size: m.
        penalty: One of the penalties in the docstring of this module.
        min_score: Molecules with a lower reward are neither counted nor penalised.
        min_similarity: Threshold of `similar_scaffold`.

    Raises:
        ValueError: if a setting is out of range.

    Equal to the code of REINVENT 4: every sample counts, including repeats.
    """

    one_process = "keeps one memory"

    def __init__(
        self,
        bucket: Bucket = "murcko_scaffold",
        bucket_size: int = 25,
        penalty: Penalty = "step",
        min_score: float = 0.4,
        min_similarity: float = 0.6,
    ) -> None:
        if bucket_size < 1 or not 0 <= min_similarity <= 1:
            raise ValueError(
                f"diversity_filter has bucket_size {bucket_size} and min_similarity "
                f"{min_similarity}: set the first to at least 1, the second from 0 to 1"
            )
        self.bucket: Bucket = bucket
        self.bucket_size = bucket_size
        self.penalty: Penalty = penalty
        self.min_score = min_score
        self.min_similarity = min_similarity
        self.counts: Counter[str] = Counter()
        self._fingerprints: dict[str, Any] = {}

    def penalised(self, smiles: Sequence[str], reward_B: Tensor) -> Tensor:
        """Count molecules one by one, and return their rewards after the penalty.

        Args:
            smiles: SMILES strings, valid or not.
            reward_B: Rewards; nan stays nan.
        """
        kept = []
        for text, reward in zip(smiles, reward_B.tolist(), strict=True):
            kept.append(1.0)
            name = self._name(text) if reward >= self.min_score else None
            if name is not None:
                self.counts[name] += 1
                kept[-1] = penalty(self.penalty, self.counts[name], self.bucket_size)
        return reward_B * torch.tensor(kept, dtype=reward_B.dtype, device=reward_B.device)

    def factor(self, smiles: str, reward: float) -> float:
        """Return the current penalty factor of a molecule, without counting it."""
        name = self._name(smiles) if reward >= self.min_score else None
        count = self.counts.get(name, 0) if name is not None else 0
        return penalty(self.penalty, count, self.bucket_size) if count else 1.0

    @property
    def num_full(self) -> int:
        """The number of full buckets."""
        return sum(count >= self.bucket_size for count in self.counts.values())

    def state_dict(self) -> dict[str, Any]:
        """Return the counts, as plain values."""
        return {"counts": dict(self.counts)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts."""
        self.counts = Counter(state["counts"])
        self._fingerprints = {}
        if self.bucket == "similar_scaffold":
            self._fingerprints = {name: _atom_pairs(name) for name in self.counts if name}

    def _name(self, smiles: str) -> str | None:
        molecule = read_molecule(smiles)
        if molecule is None:
            return None
        if self.bucket == "molecule":
            return write_molecule(molecule)
        scaffold = murcko_scaffold(molecule)
        if not scaffold:
            return scaffold
        if self.bucket == "topological_scaffold":
            return _topological(scaffold)
        return self._similar(scaffold) if self.bucket == "similar_scaffold" else scaffold

    def _similar(self, scaffold: str) -> str:
        from rdkit import DataStructs

        own = _atom_pairs(scaffold)
        names = list(self._fingerprints)
        if names:
            alike = DataStructs.BulkDiceSimilarity(own, list(self._fingerprints.values()))
            best = max(range(len(names)), key=alike.__getitem__)
            if alike[best] >= self.min_similarity:
                return names[best]
        self._fingerprints[scaffold] = own
        return scaffold


def _topological(scaffold: str) -> str:
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return write_molecule(MurckoScaffold.MakeScaffoldGeneric(read_molecule(scaffold)))


def _atom_pairs(scaffold: str) -> Mol:
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetAtomPairGenerator()
    return generator.GetSparseCountFingerprint(read_molecule(scaffold))
