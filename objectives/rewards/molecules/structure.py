"""Similarity to target molecules, substructures and scaffolds."""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from triptych.models.diversify.molecules.molecule import Mol, murcko_scaffold, read_molecule
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform

Fingerprint = Literal["morgan", "feature_morgan", "atom_pair"]


class TargetSimilarity(MoleculeComponent):
    """The largest Tanimoto similarity to the targets.

    Args:
        targets: SMILES of the targets.
        radius: Radius of Morgan fingerprints, in bonds.
        num_bits: Length of the fingerprint.
        transform: Maps the similarity to [0, 1]; null: unchanged.
        fingerprint: `morgan` (ECFP), `feature_morgan` (FCFP: atoms by their role, such as donor or
            aromatic), or `atom_pair`.
        counts: Compare how often each feature occurs, not only whether it does.
        chirality: Tell stereoisomers apart.
        name: In ledger, logs and tables; null: `target_similarity`.

    Raises:
        ValueError: If there is no target, or one is invalid.
    """

    cost_ms = 0.15
    # Only what differs from these is described, so that earlier ledgers keep their objective.
    fingerprint: Fingerprint = "morgan"
    counts = False
    chirality = False

    def __init__(
        self,
        targets: Sequence[str],
        radius: int = 2,
        num_bits: int = 2048,
        transform: Transform | None = None,
        fingerprint: Fingerprint = "morgan",
        counts: bool = False,
        chirality: bool = False,
        name: str | None = None,
    ) -> None:
        super().__init__(transform, name)
        if fingerprint not in get_args(Fingerprint):
            raise ValueError(
                f"fingerprint is {fingerprint!r}: set it to {', '.join(get_args(Fingerprint))}"
            )
        self.fingerprint, self.counts, self.chirality = fingerprint, counts, chirality
        if not targets:
            raise ValueError("targets is empty: give at least one SMILES string")
        molecules = [_molecule(target, "targets") for target in targets]
        self.targets, self.radius, self.num_bits = list(targets), radius, num_bits
        self._fingerprints = [self._fingerprint(molecule) for molecule in molecules]

    def value(self, molecule: Mol, smiles: str) -> float:
        """Find the most similar target."""
        from rdkit import DataStructs

        own = self._fingerprint(molecule)
        return float(max(DataStructs.BulkTanimotoSimilarity(own, self._fingerprints)))

    def _fingerprint(self, molecule: Mol) -> Mol:
        from rdkit.Chem import rdFingerprintGenerator

        if self.fingerprint == "atom_pair":
            generator = rdFingerprintGenerator.GetAtomPairGenerator(
                fpSize=self.num_bits, includeChirality=self.chirality
            )
        else:
            features: dict[str, Any] = {}
            if self.fingerprint == "feature_morgan":
                features["atomInvariantsGenerator"] = (
                    rdFingerprintGenerator.GetMorganFeatureAtomInvGen()
                )
            generator = rdFingerprintGenerator.GetMorganGenerator(
                self.radius, fpSize=self.num_bits, includeChirality=self.chirality, **features
            )
        if self.counts:
            return generator.GetCountFingerprint(molecule)
        return generator.GetFingerprint(molecule)


class Substructure(MoleculeComponent):
    """1 for molecules that contain one of the patterns, else 0.

    Args:
        patterns: SMARTS.
        forbidden: The reverse: 1 for molecules that contain none of them.
        name: In ledger, logs and tables; null: that of the class.

    Raises:
        ValueError: If there is no pattern, or one is not valid SMARTS.
    """

    def __init__(
        self, patterns: Sequence[str], forbidden: bool = False, name: str | None = None
    ) -> None:
        from rdkit import Chem, rdBase

        super().__init__(name=name)
        with rdBase.BlockLogs():
            self._patterns = [Chem.MolFromSmarts(pattern) for pattern in patterns]
        for text, pattern in zip(patterns, self._patterns, strict=True):
            if pattern is None:
                raise ValueError(f"patterns holds {text!r}, which is no SMARTS: mend or remove it")
        if not patterns:
            raise ValueError("patterns is empty: give at least one SMARTS")
        self.patterns, self.forbidden = list(patterns), forbidden

    def value(self, molecule: Mol, smiles: str) -> float:
        """Search for the patterns."""
        holds_one = any(molecule.HasSubstructMatch(pattern) for pattern in self._patterns)
        return float(holds_one != self.forbidden)


class CustomAlerts(Substructure):
    """A filter: 0 for molecules that contain one of the patterns, whatever their other scores.

    It multiplies the mean of the other components, where a forbidden `Substructure` is a part of
    it. As `preliminary` filter of the objective it costs no oracle call.

    Args:
        patterns: SMARTS of the alerts.
        name: In ledger, logs and tables; null: `custom_alerts`.

    Raises:
        ValueError: If there is no pattern, or one is not valid SMARTS.
    """

    is_filter = True

    def __init__(self, patterns: Sequence[str], name: str | None = None) -> None:
        super().__init__(patterns, forbidden=True, name=name)


class ScaffoldMatch(MoleculeComponent):
    """1 for molecules with one of the given Bemis-Murcko scaffolds, else 0.

    Args:
        scaffolds: SMILES of molecules with these scaffolds, or of the scaffolds themselves.
        name: In ledger, logs and tables; null: that of the class.

    Raises:
        ValueError: If there is no scaffold, or one is invalid.
    """

    cost_ms = 0.2

    def __init__(self, scaffolds: Sequence[str], name: str | None = None) -> None:
        super().__init__(name=name)
        if not scaffolds:
            raise ValueError("scaffolds is empty: give at least one SMILES string")
        self.scaffolds = list(scaffolds)
        self._wanted = {murcko_scaffold(_molecule(text, "scaffolds")) for text in scaffolds}

    def value(self, molecule: Mol, smiles: str) -> float:
        """Compare scaffolds."""
        return float(murcko_scaffold(molecule) in self._wanted)


def _molecule(smiles: str, setting: str) -> Mol:
    molecule = read_molecule(smiles)
    if molecule is None:
        raise ValueError(f"{setting} holds {smiles!r}, which is no molecule: give valid SMILES")
    return molecule
