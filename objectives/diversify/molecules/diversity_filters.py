"""Rewards that fall as more molecules of the same kind are found.

A filter sorts good molecules into buckets by scaffold, counts them, and multiplies their reward by
a penalty of the count N and the bucket's size m (Blaschke et al. 2020; the soft penalties are of
Svensson et al. 2024, "Diversity-aware reinforcement learning for de novo drug design"):

    step      1 while N <= m, else 0
    linear    max(0, 1 - N / m)
    sigmoid   1 - 1 / (1 + exp(-(2 N / m - 1) / 0.15))
    erf       1 + erf(sqrt(pi) / m) - erf(sqrt(pi) N / m)
    tanh      1 - tanh(3 (N - 1) / m)

A molecule is counted before it is penalised: N is 1 for the first of its bucket. MARA is applied
afterwards: a penalised reward below the threshold is not augmented.

By default the rules are those that REINVENT 4 published with its scaffold filters (4.0 to 4.5): a
bucket is full once its count exceeds its size, and a molecule that was counted before scores 0 and
is not counted again. `tests/objectives/diversify/molecules/test_diversity_filters.py` holds tables
made with its classes.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.models.diversify.molecules.molecule import (
    Mol,
    canonical_smiles,
    murcko_scaffold,
    read_molecule,
    write_molecule,
)

# Shapes: B completions

Bucket = Literal["murcko_scaffold", "topological_scaffold", "similar_scaffold", "molecule"]
Penalty = Literal["step", "linear", "sigmoid", "erf", "tanh"]
Full = Literal["above_size", "at_size"]
Repeats = Literal["penalise", "count"]


def penalty(kind: Penalty, count: int, size: int, full: Full = "above_size") -> float:
    """Compute the remaining share of a reward with `count` molecules in a bucket of `size`.

    >>> penalty("step", 10, 10), penalty("step", 11, 10), penalty("linear", 3, 10)
    (1.0, 0.0, 0.7)
    >>> penalty("step", 10, 10, full="at_size")
    0.0
    """
    if kind == "step":
        return float(not _is_full(count, size, full))
    if kind == "linear":
        return max(0.0, 1 - count / size)
    if kind == "sigmoid":
        return 1 - 1 / (1 + math.exp(-(2 * min(count, 50 * size) / size - 1) / 0.15))
    if kind == "erf":
        unit = math.sqrt(math.pi) / size
        return 1 + math.erf(unit) - math.erf(unit * count)
    return 1 - math.tanh(3 * (count - 1) / size)


def _is_full(count: int, size: int, full: Full) -> bool:
    return count > size if full == "above_size" else count >= size


class DiversityFilter:
    """Buckets of good molecules with their counts.

    Args:
        bucket: `murcko_scaffold`: identical Bemis-Murcko scaffolds. `topological_scaffold`: these
            with all atoms carbon and all bonds single. `similar_scaffold`: a scaffold joins the
            known one with the most similar atom pairs (Dice), if `min_similarity` is reached.
            `molecule`: the molecule itself. With `repeats: penalise` that is REINVENT's
            PenalizeSameSmiles: whatever its reward, a molecule that was sampled before has it
            multiplied by `penalty_multiplier`.
        bucket_size: m; of no effect for `molecule` with `repeats: penalise`.
        penalty: One of the penalties in the docstring of this module.
        min_score: Molecules with a lower reward are neither counted nor penalised.
        min_similarity: Threshold of `similar_scaffold`.
        repeats: `penalise`: a molecule that was counted before scores 0 and is not counted again,
            as in REINVENT 4. `count`: every sample counts, repeats too, as in Saturn.
        full: When a `step` bucket is full: `above_size`: its count exceeds m, so m molecules keep
            their reward, as in REINVENT 4 and Saturn; `at_size`: its count is m, so m - 1 do.
        penalty_multiplier: Factor of a repeated molecule, for `molecule` with `repeats: penalise`.

    Raises:
        ValueError: if a setting is out of range.

    A remembered molecule of `ExperienceReplay` is no new sample: it is penalised if its bucket is
    full, not as a repeat (ours; REINVENT replays the penalised reward of its first sample).
    """

    one_process = "keeps one memory"

    def __init__(
        self,
        bucket: Bucket = "murcko_scaffold",
        bucket_size: int = 25,
        penalty: Penalty = "step",
        min_score: float = 0.4,
        min_similarity: float = 0.4,
        repeats: Repeats = "penalise",
        full: Full = "above_size",
        penalty_multiplier: float = 0.5,
    ) -> None:
        if bucket_size < 1 or not 0 <= min_similarity <= 1 or not 0 <= penalty_multiplier <= 1:
            raise ValueError(
                f"diversity_filter has bucket_size {bucket_size}, min_similarity {min_similarity} "
                f"and penalty_multiplier {penalty_multiplier}: set the first to at least 1, the "
                "others from 0 to 1"
            )
        if penalty == "step" and full == "at_size" and bucket_size == 1:
            raise ValueError(
                "diversity_filter has bucket_size 1 and full at_size, which leaves no molecule its "
                "reward: set bucket_size to at least 2, or full to above_size"
            )
        self.bucket: Bucket = bucket
        self.bucket_size = bucket_size
        self.penalty: Penalty = penalty
        self.min_score = min_score
        self.min_similarity = min_similarity
        self.repeats: Repeats = repeats
        self.full: Full = full
        self.penalty_multiplier = penalty_multiplier
        self.counts: Counter[str] = Counter()
        #: Canonical SMILES of the molecules that were counted, in that order.
        self.known: dict[str, None] = {}
        self._fingerprints: dict[str, Any] = {}

    def penalised(self, smiles: Sequence[str], reward_B: Tensor) -> Tensor:
        """Count molecules one by one, and return their rewards after the penalty.

        Args:
            smiles: SMILES strings, valid or not.
            reward_B: Rewards; nan stays nan.
        """
        pairs = zip(smiles, reward_B.tolist(), strict=True)
        count = self._count_molecule if self._penalises_molecules else self._count_scaffold
        kept = [1.0 if math.isnan(reward) else count(text, reward) for text, reward in pairs]
        return reward_B * torch.tensor(kept, dtype=reward_B.dtype, device=reward_B.device)

    @property
    def _penalises_molecules(self) -> bool:
        return self.bucket == "molecule" and self.repeats == "penalise"

    def _count_molecule(self, text: str, reward: float) -> float:
        """Remember a molecule; return the factor of its reward."""
        name = canonical_smiles(text)
        if name is None:
            return 1.0
        repeated = name in self.known
        self.known[name] = None
        return self.penalty_multiplier if repeated else 1.0

    def _count_scaffold(self, text: str, reward: float) -> float:
        """Count a molecule in its bucket; return the factor of its reward."""
        molecule = canonical_smiles(text)
        if molecule is None:
            return 1.0
        # Scaffolds of weak molecules found buckets too, as in REINVENT 4.
        name = self._bucket_of(molecule, found=True)
        factor = 0.0 if self.repeats == "penalise" and molecule in self.known else 1.0
        if reward * factor < self.min_score:
            return factor
        self.known[molecule] = None
        self.counts[name] += 1
        return factor * penalty(self.penalty, self.counts[name], self.bucket_size, self.full)

    def factor(self, smiles: str, reward: float) -> float:
        """Return the penalty factor of a remembered molecule now, without counting it."""
        molecule = canonical_smiles(smiles)
        if molecule is None or reward < self.min_score or self._penalises_molecules:
            return 1.0
        count = self.counts.get(self._bucket_of(molecule, found=False), 0)
        return penalty(self.penalty, count, self.bucket_size, self.full) if count else 1.0

    @property
    def num_full(self) -> int:
        """The number of full buckets."""
        return sum(_is_full(count, self.bucket_size, self.full) for count in self.counts.values())

    def state_dict(self) -> dict[str, Any]:
        """Return counts, known molecules and scaffolds, as plain values."""
        return {
            "counts": dict(self.counts),
            "known": list(self.known),
            "scaffolds": list(self._fingerprints),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the counts; those of version 0.2 and before have no known molecules."""
        self.counts = Counter(state["counts"])
        self.known = dict.fromkeys(state.get("known", []))
        self._fingerprints = {}
        if self.bucket == "similar_scaffold":
            scaffolds = state.get("scaffolds", [name for name in self.counts if name])
            self._fingerprints = {name: _atom_pairs(name) for name in scaffolds}

    def _bucket_of(self, molecule: str, found: bool) -> str:
        """Return the name of a molecule's bucket.

        Args:
            molecule: Canonical SMILES.
            found: Whether a new scaffold becomes a bucket that similar ones join.
        """
        if self.bucket == "molecule":
            return molecule
        scaffold = murcko_scaffold(read_molecule(molecule))
        if not scaffold:
            return scaffold
        if self.bucket == "topological_scaffold":
            return _topological(scaffold)
        return self._similar(scaffold, found) if self.bucket == "similar_scaffold" else scaffold

    def _similar(self, scaffold: str, found: bool) -> str:
        from rdkit import DataStructs

        own = _atom_pairs(scaffold)
        names = list(self._fingerprints)
        if names:
            alike = DataStructs.BulkDiceSimilarity(own, list(self._fingerprints.values()))
            best = max(range(len(names)), key=alike.__getitem__)
            if alike[best] >= self.min_similarity:
                return names[best]
        if found:
            self._fingerprints[scaffold] = own
        return scaffold


def _topological(scaffold: str) -> str:
    from rdkit.Chem.Scaffolds import MurckoScaffold

    return write_molecule(MurckoScaffold.MakeScaffoldGeneric(read_molecule(scaffold)))


def _atom_pairs(scaffold: str) -> Mol:
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetAtomPairGenerator()
    return generator.GetSparseCountFingerprint(read_molecule(scaffold))
