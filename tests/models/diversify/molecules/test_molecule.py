"""Canonical SMILES: a fixed point, one option for each mark, and nothing but a molecule."""

import pytest
from rdkit import Chem

from triptych.models.diversify.molecules.molecule import canonical_smiles, read_molecule

# Molecules whose canonical form changes when it is read and written again (RDKit 2026.03 and
# before): issues 8721, 7759, 6420, 4710 of rdkit.
UNSTABLE = [
    "O=C(c1ccccc1C(=O)N1C(=O)c2ccccc2C1=O)N1C(=O)c2ccccc2C1=O",
    "O=C=NC1=CC2C3=C(C=C1)C2=C(N=C=O)C=C3",
    r"[H]/N=C(C=C)\C(/N=C\[O-])=N\[H]",
    "[C@H]12[C@H]3[C@@H]4[C@H]5[C@@H]([C@H]1N24)N53",
    "O=C(C[C@]1(c2ccc(-c3ccc(F)cc3)cc2)C2CC3CC1CC(C2)[C@@H]3O)N1CC(O)C1",
    "COC(=O)CC[C@@H](C)[C@H]1CC[C@H]2[C@H]3[C@H](CC[C@@]21C)[C@@]1(C)CC[C@]2(C[C@H]1C[C@H]3OC(C)=O)"
    "OOC1(CC[C@@H](C)CC1)OO2",
]


@pytest.mark.parametrize("smiles", UNSTABLE)
def test_a_canonical_form_is_its_own(smiles):
    form = canonical_smiles(smiles)
    assert canonical_smiles(form) == form
    text = smiles
    for _ in range(4):  # all that RDKit makes of it in turn
        text = Chem.CanonSmiles(text)
        assert canonical_smiles(text) == form
    spellings = Chem.MolToRandomSmilesVect(Chem.MolFromSmiles(smiles), 10, randomSeed=1)
    assert {canonical_smiles(spelling) for spelling in spellings} == {form}


@pytest.mark.parametrize(
    ("smiles", "whole", "without_stereo", "without_isotopes"),
    [
        ("[2H]C([2H])([2H])O", "[2H]C([2H])([2H])O", "[2H]C([2H])([2H])O", "CO"),
        ("[13CH3]c1ccccc1", "[13CH3]c1ccccc1", "[13CH3]c1ccccc1", "Cc1ccccc1"),
        ("[2H][C@](C)(N)O", "[2H][C@](C)(N)O", "[2H]C(C)(N)O", "C[C@@H](N)O"),
        ("F/C=C/[2H]", "[2H]/C=C/F", "[2H]C=CF", "C=CF"),
        ("[H]C([H])([H])O", "CO", "CO", "CO"),
        ("[H]/N=C(/C)N", "CC(=N)N", "CC(=N)N", "CC(=N)N"),
        ("[H][H]", "[H][H]", "[H][H]", "[H][H]"),
    ],
)
def test_stereochemistry_and_isotopes_have_an_option_each(
    smiles, whole, without_stereo, without_isotopes
):
    assert canonical_smiles(smiles) == whole
    assert canonical_smiles(smiles, keep_stereo=False) == without_stereo
    assert canonical_smiles(smiles, keep_isotopes=False) == without_isotopes


@pytest.mark.parametrize(
    "text",
    ["CCO is the answer", "CCO\tname", "CCO |$R$|", "Cé", "CC\0O", "CCO\nCC", "", " ", "C1CC"],
)
def test_other_text_makes_a_string_invalid(text):
    assert read_molecule(text) is None
    assert canonical_smiles(text) is None


def test_white_space_around_a_molecule_is_ignored():
    assert canonical_smiles(" OCC\n") == "CCO"
