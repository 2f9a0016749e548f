"""Oracles of PMO (Gao et al. 2022) that are formulas of RDKit: 20 of the 23.

They are the goals of GuacaMol (Brown et al. 2019) as TDC has them, with fingerprints of counts:
ECFP4 and ECFP6 (Morgan, radius 2 and 3), FCFP4 (feature atoms), AP (atom pairs up to distance 10).
An oracle takes a molecule of RDKit and returns a score from 0 to 1. Scores of several parts are
their geometric mean, except those of the hops, which are arithmetic.

drd2, gsk3b and jnk3 are left out: they are pickled models, which run code when they are loaded.

Deviations from TDC, where its code differs from GuacaMol's definition: the total number of atoms of
an isomer counts hydrogen; the parts of a hop each look for their own pattern; sitagliptin_mpo
compares its properties with those of sitagliptin.
"""

import math
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any, Literal

from triptych.models.diversify.molecules.molecule import Mol, read_molecule

Fingerprint = Literal["ECFP4", "ECFP6", "FCFP4", "AP"]
Oracle = Callable[[Mol], float]


# -- parts of scores ------------------------------------------------------------------------------


def clipped(value: float, upper: float) -> float:
    """Scale a value to 1 at `upper`, and no further.

    >>> clipped(0.3, 0.6), clipped(0.9, 0.6)
    (0.5, 1.0)
    """
    return min(max(value / upper, 0.0), 1.0)


def gaussian(value: float, mean: float, deviation: float) -> float:
    """Return the Gaussian of a value, 1 at its mean.

    >>> round(gaussian(3.0, 2.0, 1.0), 4)
    0.6065
    """
    return math.exp(-0.5 * ((value - mean) / deviation) ** 2)


def below(value: float, mean: float, deviation: float) -> float:
    """Return 1 for values up to the mean, and the Gaussian above it (GuacaMol's MinGaussian)."""
    return gaussian(max(value, mean), mean, deviation)


def above(value: float, mean: float, deviation: float) -> float:
    """Return 1 for values from the mean on, and the Gaussian below it (GuacaMol's MaxGaussian)."""
    return gaussian(min(value, mean), mean, deviation)


def geometric_mean(parts: Sequence[float]) -> float:
    """Return the geometric mean, 0 if a part is 0."""
    if min(parts) <= 0:
        return 0.0
    return math.exp(sum(map(math.log, parts)) / len(parts))


def similarity(molecule: Mol, target: str, kind: Fingerprint) -> float:
    """Compute the Tanimoto similarity of count fingerprints to a target molecule."""
    from rdkit import DataStructs

    found: float = DataStructs.TanimotoSimilarity(_counts(molecule, kind), _target(target, kind))
    return found


@lru_cache
def _generator(kind: Fingerprint) -> Any:
    from rdkit.Chem import rdFingerprintGenerator as Generators

    if kind == "AP":
        return Generators.GetAtomPairGenerator(maxDistance=10)
    if kind == "FCFP4":
        features = Generators.GetMorganFeatureAtomInvGen()
        return Generators.GetMorganGenerator(radius=2, atomInvariantsGenerator=features)
    return Generators.GetMorganGenerator(radius=2 if kind == "ECFP4" else 3)


def _counts(molecule: Mol, kind: Fingerprint) -> Any:
    return _generator(kind).GetSparseCountFingerprint(molecule)


@lru_cache
def _target(smiles: str, kind: Fingerprint) -> Any:
    return _counts(read_molecule(smiles), kind)


def _log_p(molecule: Mol) -> float:
    from rdkit.Chem import Crippen

    value: float = Crippen.MolLogP(molecule)  # type: ignore[attr-defined]
    return value


def _surface(molecule: Mol) -> float:
    """Return the topological polar surface area in square angstrom."""
    from rdkit.Chem import rdMolDescriptors

    value: float = rdMolDescriptors.CalcTPSA(molecule)
    return value


def _matches(molecule: Mol, smarts: str) -> bool:
    return bool(molecule.HasSubstructMatch(_pattern(smarts)))


@lru_cache
def _pattern(smarts: str) -> Any:
    from rdkit import Chem

    return Chem.MolFromSmarts(smarts)


# -- rediscovery, similarity, medians -------------------------------------------------------------

_CELECOXIB = "CC1=CC=C(C=C1)C1=CC(=NN1C1=CC=C(C=C1)S(N)(=O)=O)C(F)(F)F"
_TROGLITAZONE = "Cc1c(C)c2OC(C)(COc3ccc(CC4SC(=O)NC4=O)cc3)CCc2c(C)c1O"
_THIOTHIXENE = "CN(C)S(=O)(=O)c1ccc2Sc3ccccc3C(=CCCN4CCN(C)CC4)c2c1"
_ALBUTEROL = "CC(C)(C)NCC(O)c1ccc(O)c(CO)c1"
_MESTRANOL = "COc1ccc2[C@H]3CC[C@@]4(C)[C@@H](CC[C@@]4(O)C#C)[C@@H]3CCc2c1"
_CAMPHOR, _MENTHOL = "CC1(C)C2CCC1(C)C(=O)C2", "CC(C)C1CCC(C)CC1O"
_TADALAFIL = "O=C1N(CC(N2C1CC3=C(C2C4=CC5=C(OCO5)C=C4)NC6=C3C=CC=C6)=O)C"
_SILDENAFIL = "CCCC1=NN(C2=C1N=C(NC2=O)C3=C(C=CC(=C3)S(=O)(=O)N4CCN(CC4)C)OCC)C"


def celecoxib_rediscovery(molecule: Mol) -> float:
    """Score the similarity to celecoxib."""
    return similarity(molecule, _CELECOXIB, "ECFP4")


def troglitazone_rediscovery(molecule: Mol) -> float:
    """Score the similarity to troglitazone."""
    return similarity(molecule, _TROGLITAZONE, "ECFP4")


def thiothixene_rediscovery(molecule: Mol) -> float:
    """Score the similarity to thiothixene."""
    return similarity(molecule, _THIOTHIXENE, "ECFP4")


def albuterol_similarity(molecule: Mol) -> float:
    """Score the similarity of features to albuterol, .75 being enough."""
    return clipped(similarity(molecule, _ALBUTEROL, "FCFP4"), 0.75)


def mestranol_similarity(molecule: Mol) -> float:
    """Score the similarity of atom pairs to mestranol, .75 being enough."""
    return clipped(similarity(molecule, _MESTRANOL, "AP"), 0.75)


def median1(molecule: Mol) -> float:
    """Score the similarity to both camphor and menthol."""
    return geometric_mean([similarity(molecule, s, "ECFP4") for s in (_CAMPHOR, _MENTHOL)])


def median2(molecule: Mol) -> float:
    """Score the similarity to both tadalafil and sildenafil."""
    return geometric_mean([similarity(molecule, s, "ECFP6") for s in (_TADALAFIL, _SILDENAFIL)])


# -- isomers --------------------------------------------------------------------------------------


def isomer_score(molecule: Mol, formula: dict[str, int]) -> float:
    """Score how near the atom counts of a molecule are to a formula, hydrogen included."""
    atoms = [atom.GetSymbol() for atom in molecule.GetAtoms()]
    atoms += ["H"] * sum(atom.GetTotalNumHs() for atom in molecule.GetAtoms())
    parts = [gaussian(atoms.count(name), count, 1.0) for name, count in formula.items()]
    return geometric_mean([*parts, gaussian(len(atoms), sum(formula.values()), 2.0)])


def isomers_c7h8n2o2(molecule: Mol) -> float:
    """Score isomers of C7H8N2O2."""
    return isomer_score(molecule, {"C": 7, "H": 8, "N": 2, "O": 2})


def isomers_c9h10n2o2pf2cl(molecule: Mol) -> float:
    """Score isomers of C9H10N2O2PF2Cl."""
    formula = {"C": 9, "H": 10, "N": 2, "O": 2, "P": 1, "F": 2, "Cl": 1}
    return isomer_score(molecule, formula)


# -- several properties ---------------------------------------------------------------------------

_OSIMERTINIB = "COc1cc(N(C)CCN(C)C)c(NC(=O)C=C)cc1Nc2nccc(n2)c3cn(C)c4ccccc34"
_FEXOFENADINE = "CC(C)(C(=O)O)c1ccc(cc1)C(O)CCCN2CCC(CC2)C(O)(c3ccccc3)c4ccccc4"
_RANOLAZINE = "COc1ccccc1OCC(O)CN2CCN(CC(=O)Nc3c(C)cccc3C)CC2"
_PERINDOPRIL = "O=C(OCC)C(NC(C(=O)N1C(C(=O)O)CC2CCCCC12)C)CCC"
_AMLODIPINE = r"Clc1ccccc1C2C(=C(/N/C(=C2/C(=O)OCC)COCCN)C)\C(=O)OC"
_ZALEPLON = "O=C(C)N(CC)C1=CC=CC(C2=CC=NC3=C(C=NN23)C#N)=C1"
_SITAGLIPTIN = "Fc1cc(c(F)cc1F)CC(N)CC(=O)N3Cc2nnc(n2CC3)C(F)(F)F"
_VALSARTAN_PATTERN = "CN(C=O)Cc1ccc(c2ccccc2)cc1"


def osimertinib_mpo(molecule: Mol) -> float:
    """Score features as of osimertinib, in another and more polar molecule."""
    return geometric_mean(
        [
            clipped(similarity(molecule, _OSIMERTINIB, "FCFP4"), 0.8),
            below(similarity(molecule, _OSIMERTINIB, "ECFP6"), 0.85, 0.1),
            above(_surface(molecule), 100, 10),
            below(_log_p(molecule), 1, 1),
        ]
    )


def fexofenadine_mpo(molecule: Mol) -> float:
    """Score atom pairs as of fexofenadine, in a more polar molecule."""
    return geometric_mean(
        [
            clipped(similarity(molecule, _FEXOFENADINE, "AP"), 0.8),
            above(_surface(molecule), 90, 10),
            below(_log_p(molecule), 4, 1),
        ]
    )


def ranolazine_mpo(molecule: Mol) -> float:
    """Score atom pairs as of ranolazine, with a fluorine, more polar surface and lipophilicity."""
    fluorine = sum(atom.GetSymbol() == "F" for atom in molecule.GetAtoms())
    return geometric_mean(
        [
            clipped(similarity(molecule, _RANOLAZINE, "AP"), 0.7),
            above(_log_p(molecule), 7, 1),
            above(_surface(molecule), 95, 20),
            gaussian(fluorine, 1, 1),
        ]
    )


def perindopril_mpo(molecule: Mol) -> float:
    """Score the similarity to perindopril, with two aromatic rings."""
    from rdkit.Chem import rdMolDescriptors

    rings = rdMolDescriptors.CalcNumAromaticRings(molecule)
    return geometric_mean([similarity(molecule, _PERINDOPRIL, "ECFP4"), gaussian(rings, 2, 0.5)])


def amlodipine_mpo(molecule: Mol) -> float:
    """Score the similarity to amlodipine, with three rings."""
    from rdkit.Chem import rdMolDescriptors

    rings = rdMolDescriptors.CalcNumRings(molecule)
    return geometric_mean([similarity(molecule, _AMLODIPINE, "ECFP4"), gaussian(rings, 3, 0.5)])


def zaleplon_mpo(molecule: Mol) -> float:
    """Score the similarity to zaleplon, with the formula C19H17N3O2."""
    formula = {"C": 19, "H": 17, "N": 3, "O": 2}
    return geometric_mean(
        [similarity(molecule, _ZALEPLON, "ECFP4"), isomer_score(molecule, formula)]
    )


def sitagliptin_mpo(molecule: Mol) -> float:
    """Score molecules with the formula and properties of sitagliptin that are unlike it."""
    target = read_molecule(_SITAGLIPTIN)
    formula = {"C": 16, "H": 15, "F": 6, "N": 5, "O": 1}
    return geometric_mean(
        [
            gaussian(similarity(molecule, _SITAGLIPTIN, "ECFP4"), 0, 0.1),
            gaussian(_log_p(molecule), _log_p(target), 0.2),
            gaussian(_surface(molecule), _surface(target), 5),
            isomer_score(molecule, formula),
        ]
    )


def valsartan_smarts(molecule: Mol) -> float:
    """Score a pattern of valsartan with properties of sitagliptin."""
    from rdkit.Chem import GraphDescriptors

    complexity: Any = GraphDescriptors.BertzCT
    target = read_molecule(_SITAGLIPTIN)
    return geometric_mean(
        [
            float(_matches(molecule, _VALSARTAN_PATTERN)),
            gaussian(_log_p(molecule), _log_p(target), 0.2),
            gaussian(_surface(molecule), _surface(target), 5),
            gaussian(complexity(molecule), complexity(target), 30),
        ]
    )


# -- hops -----------------------------------------------------------------------------------------

_PHARMACOPHORE = "CCCOc1cc2ncnc(Nc3ccc4ncsc4c3)c2cc1S(=O)(=O)C(C)(C)C"
_SULFONE, _THIAZOLE = "CS([#6])(=O)=O", "[#7]-c1ccc2ncsc2c1"
_SCAFFOLD = "[#7]-c1n[c;h1]nc2[c;h1]c(-[#8])[c;h0][c;h1]c12"
_DECORATION = "[#6]-[#6]-[#6]-[#8]-[#6]~[#6]~[#6]~[#6]~[#6]-[#7]-c1ccc2ncsc2c1"


def pharmacophore_similarity(molecule: Mol) -> float:
    """Compute the Tanimoto similarity of two-dimensional pharmacophores (Gobbi) to the target."""
    from rdkit import DataStructs

    found: float = DataStructs.TanimotoSimilarity(_pharmacophore(molecule), _target_pharmacophore())
    return found


def _pharmacophore(molecule: Mol) -> Any:
    from rdkit.Chem.Pharm2D import Generate, Gobbi_Pharm2D

    make: Any = Generate.Gen2DFingerprint
    return make(molecule, Gobbi_Pharm2D.factory)


@lru_cache
def _target_pharmacophore() -> Any:
    return _pharmacophore(read_molecule(_PHARMACOPHORE))


def deco_hop(molecule: Mol) -> float:
    """Score the scaffold of the target without its decorations."""
    alike = clipped(pharmacophore_similarity(molecule), 0.85)
    without = [float(not _matches(molecule, smarts)) for smarts in (_SULFONE, _THIAZOLE)]
    return sum([alike, *without, float(_matches(molecule, _SCAFFOLD))]) / 4


def scaffold_hop(molecule: Mol) -> float:
    """Score the decoration of the target without its scaffold."""
    alike = clipped(pharmacophore_similarity(molecule), 0.75)
    parts = [_matches(molecule, _DECORATION), not _matches(molecule, _SCAFFOLD)]
    return (alike + sum(map(float, parts))) / 3


def qed(molecule: Mol) -> float:
    """Score drug-likeness (Bickerton et al. 2012)."""
    from rdkit.Chem import QED

    value: float = QED.qed(molecule)
    return value


ORACLES: dict[str, Oracle] = {
    oracle.__name__: oracle
    for oracle in (
        albuterol_similarity,
        amlodipine_mpo,
        celecoxib_rediscovery,
        deco_hop,
        fexofenadine_mpo,
        isomers_c7h8n2o2,
        isomers_c9h10n2o2pf2cl,
        median1,
        median2,
        mestranol_similarity,
        osimertinib_mpo,
        perindopril_mpo,
        qed,
        ranolazine_mpo,
        scaffold_hop,
        sitagliptin_mpo,
        thiothixene_rediscovery,
        troglitazone_rediscovery,
        valsartan_smarts,
        zaleplon_mpo,
    )
}
