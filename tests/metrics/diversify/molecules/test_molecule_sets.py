"""Validity, uniqueness, novelty, scaffolds, and distance to a reference, by hand."""

import math

import pytest
import torch

from tests.metrics.diversify.molecules.molecule_sets import from_bits
from triptych.metrics.diversify.molecules.reference_distance import (
    ReferenceDistance,
    nearest_similarity,
)
from triptych.metrics.diversify.molecules.scaffolds import Scaffolds
from triptych.metrics.diversify.molecules.validity import NovelMolecules, Uniqueness, Validity

# Five valid of seven; ethanol thrice: three different molecules.
BATCHES = [["CCO", "OCC", "C1CC", "c1ccccc1"], ["C(O)C", "", "CCC"]]


def updated(metric):
    for batch in BATCHES:
        metric.update(batch)
    return metric


def test_shares():
    assert updated(Validity()).compute().item() == 5 / 7
    assert updated(Uniqueness()).compute().item() == 3 / 5
    assert updated(NovelMolecules(["OCC", "CCN"])).compute().item() == 2 / 3
    assert updated(NovelMolecules([])).compute().item() == 1


def test_stereoisomers_and_impossible_valences():
    metric = Uniqueness()
    metric.update(["C[C@H](N)O", "C[C@@H](N)O", "CC(N)O", "C(C)(C)(C)(C)C"])
    assert metric.compute() == 1
    assert len(metric.rows("ids")) == 3 * 2


def test_a_reference_that_is_no_molecule():
    for metric in (NovelMolecules, ReferenceDistance):
        with pytest.raises(ValueError, match=r"reference\[1\] is 'C1CC', which is not a molecule"):
            metric(["C", "C1CC"])
    with pytest.raises(ValueError, match="holds no molecule"):
        ReferenceDistance([])


def test_scaffolds():
    metric = Scaffolds()
    # Benzene twice (three strings, two molecules), pyridine once, no ring once.
    metric.update(["Cc1ccccc1", "c1(C)ccccc1", "CCc1ccccc1", "C1CC"])
    metric.update(["Cc1ccncc1", "CCO"])
    values = metric.compute()
    assert values["num_scaffolds"] == 3
    assert values["scaffold_diversity"] == 3 / 4
    assert values["scaffold_entropy_bits"] == 1.5  # shares 1/2, 1/4, 1/4


def test_nearest_neighbour_in_the_reference():
    molecules = from_bits({0, 1}, {5}, {0, 1, 2, 3})
    reference = from_bits({0, 1, 2}, {0, 1}, {7})
    expected = torch.tensor([1.0, 0.0, 3 / 4])
    torch.testing.assert_close(nearest_similarity(molecules, reference), expected)


def test_distance_to_the_reference():
    metric = ReferenceDistance(["C", "N"])
    assert math.isnan(metric.compute())
    metric.update(["C", "O", "C1CC", "N", "Cl"])
    assert metric.compute() == 0.5
