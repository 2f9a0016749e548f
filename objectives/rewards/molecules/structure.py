"""Similarity to target molecules, substructures and scaffolds."""

from collections.abc import Sequence

from triptych.models.diversify.molecules.molecule import Mol, murcko_scaffold, read_molecule
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.transforms import Transform


class TargetSimilarity(MoleculeComponent):
    """The largest Tanimoto similarity to the targets, by Morgan bits without chirality.

    Args:
        targets: SMILES of the targets.
        radius: Radius of the fingerprint, in bonds.
        num_bits: Length of the fingerprint.
        transform: Maps the similarity to [0, 1]; null: unchanged.

    Raises:
        ValueError: If there is no target, or one is invalid.
    """

    cost_ms = 0.15

    def __init__(
        self,
        targets: Sequence[str],
        radius: int = 2,
        num_bits: int = 2048,
        transform: Transform | None = None,
    ) -> None:
        super().__init__(transform)
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

        generator = rdFingerprintGenerator.GetMorganGenerator(self.radius, fpSize=self.num_bits)
        return generator.GetFingerprint(molecule)


class Substructure(MoleculeComponent):
    """1 for molecules that contain one of the patterns, else 0.

    Args:
        patterns: SMARTS.
        forbidden: The reverse: 1 for molecules that contain none of them.

    Raises:
        ValueError: If there is no pattern, or one is not valid SMARTS.
    """

    def __init__(self, patterns: Sequence[str], forbidden: bool = False) -> None:
        from rdkit import Chem, rdBase

        super().__init__()
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


class ScaffoldMatch(MoleculeComponent):
    """1 for molecules with one of the given Bemis-Murcko scaffolds, else 0.

    Args:
        scaffolds: SMILES of molecules with these scaffolds, or of the scaffolds themselves.

    Raises:
        ValueError: If there is no scaffold, or one is invalid.
    """

    cost_ms = 0.2

    def __init__(self, scaffolds: Sequence[str]) -> None:
        super().__init__()
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
