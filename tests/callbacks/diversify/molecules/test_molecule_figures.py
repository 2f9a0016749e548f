"""The map of molecules by hand, and what the panels of a search's properties are made of."""

import numpy as np
import pytest

from triptych.callbacks.diversify.molecules.chemical_space import (
    draw_space,
    principal_plane,
    spread,
)
from triptych.callbacks.diversify.molecules.property_histograms import bin_edges, draw_properties
from triptych.objectives.rewards.molecules.oracle_ledger import Call

SMILES = ["CCO", "CCN", "CCCO", "c1ccccc1", "Cc1ccccc1", "Oc1ccccc1", "CC(=O)O", "C1CCCCC1"]


def call(number: int, smiles: str, score: float, **components: float) -> Call:
    return Call(number, smiles, 0, score, components, None)


CALLS = [call(n, text, n / 10, parts=n / 10) for n, text in enumerate(SMILES, 1)]


def test_principal_components_are_those_of_numpy():
    from rdkit import Chem
    from rdkit.Chem import rdFingerprintGenerator

    generator = rdFingerprintGenerator.GetMorganGenerator(2, fpSize=1024)
    molecules = [Chem.MolFromSmiles(text) for text in SMILES]
    bits = np.array([generator.GetFingerprintAsNumPy(m) for m in molecules], dtype=float)
    bits -= bits.mean(0)
    left, values, _ = np.linalg.svd(bits, full_matrices=False)
    places, shares = principal_plane(SMILES)
    expected = left[:, :2] * values[:2]
    np.testing.assert_allclose(np.abs(places), np.abs(expected), atol=1e-8)
    np.testing.assert_allclose(shares, values[:2] ** 2 / (values**2).sum())
    # The same whatever the machine's linear algebra: aromatic molecules lie to one side.
    np.testing.assert_allclose(principal_plane(SMILES)[0], places)
    aromatic = np.array(["c1" in text for text in SMILES])
    assert places[aromatic, 0].min() > places[~aromatic, 0].max() or (
        places[aromatic, 0].max() < places[~aromatic, 0].min()
    )


def test_the_map_shows_all_calls_and_hits():
    figure = draw_space(CALLS, threshold=0.55)
    every, hits = figure.axes[:2]
    assert [len(axis.collections[1].get_offsets()) for axis in (every, hits)] == [8, 3]
    assert hits.collections[1].get_array().tolist() == [6, 7, 8]
    assert hits.get_title(loc="left") == "3 hits (score of at least 0.55)"
    nothing = draw_space([call(1, "C", 0.0), call(2, "C", 0.0)], threshold=0.5)
    assert "0% of the variance" in nothing.axes[0].get_xlabel()
    assert [text.get_text() for text in nothing.axes[1].texts] == ["no hits yet"]
    assert [c.number for c in spread(CALLS, 3)] == [1, 5, 8]
    assert spread([], 3) == []


def test_property_panels_hold_shares():
    figure = draw_properties(CALLS, 0.55, ["parts", "never_computed"])
    panels = {axis.get_xlabel(): axis for axis in figure.axes if axis.get_xlabel()}
    assert len(panels) == 6 + 2
    heights = [np.asarray(patch.get_xy())[:, 1] for patch in panels["rings"].patches]
    # 0 or 1 ring: none in the first fifth (two of eight), half of the last, two of three hits.
    assert len(heights) == 3
    assert [pytest.approx(h.max()) for h in heights] == [1.0, 0.5, 2 / 3]
    edges = panels["score: parts (0 to 1)"].patches[2].get_xy()[:, 0]
    assert (edges.min(), edges.max()) == pytest.approx((0.1, 0.8))
    assert bin_edges([1.0, 3.0], is_count=True).tolist() == [0.5, 1.5, 2.5, 3.5]
    assert len(bin_edges([0.2, 0.4], is_count=False)) == 25
    assert len(bin_edges([], is_count=False)) == 25
    assert bin_edges([], is_count=True).tolist() == [-0.5, 0.5]
    # No hit at all is drawn too.
    assert len(draw_properties(CALLS[:1], 2.0, ["parts"]).axes) == 9
