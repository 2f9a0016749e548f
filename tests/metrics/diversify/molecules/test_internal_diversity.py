"""Internal diversity: three definitions by hand, and RDKit's similarities on molecules."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rdkit import DataStructs

from tests.metrics.diversify.molecules.molecule_sets import (
    DRUGS,
    from_bits,
    random_bits,
    rdkit_vectors,
)
from triptych.metrics.diversify.molecules import internal_diversity as module
from triptych.metrics.diversify.molecules import tanimoto
from triptych.metrics.diversify.molecules.fingerprints import pack
from triptych.metrics.diversify.molecules.internal_diversity import (
    InternalDiversity,
    internal_diversity,
)

# T(a, b) = 1/3, T(a, c) = T(b, c) = 0; c is empty.
THREE = from_bits({0, 1}, {1, 2}, set())


@pytest.mark.parametrize(
    ("compat", "p", "expected"),
    [
        ("moses", 1, 16 / 27),  # rows sum to 4/3, 4/3 and 1
        ("moses", 2, 1 - (2 * math.sqrt(10 / 27) + math.sqrt(1 / 3)) / 3),
        ("tdc", 1, 8 / 9),  # three pairs, one of them 1/3
        ("guacamol", 1, 25 / 27),  # 2/3 over nine entries
    ],
)
def test_by_hand(compat, p, expected):
    assert internal_diversity(THREE, p, compat).item() == pytest.approx(expected, abs=2e-7)


@pytest.mark.parametrize("p", [1, 2])
def test_equals_rdkits_similarities(p, monkeypatch):
    monkeypatch.setattr(tanimoto, "TILE", 7)
    bits = random_bits(31, 1024, 0.05, seed=4)
    vectors = rdkit_vectors(bits)
    matrix = np.array([DataStructs.BulkTanimotoSimilarity(v, vectors) for v in vectors])
    packed = pack(bits)
    expected = 1 - np.mean(np.mean(matrix**p, axis=1) ** (1 / p))
    assert internal_diversity(packed, p).item() == pytest.approx(expected, abs=1e-7)
    if p == 1:
        off = matrix[~np.eye(31, dtype=bool)]
        assert internal_diversity(packed, 1, "tdc").item() == pytest.approx(1 - off.mean(), 1e-7)
        guacamol = 1 - off.sum() / 31**2
        assert internal_diversity(packed, 1, "guacamol").item() == pytest.approx(guacamol, 1e-7)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), num_rows=st.integers(1, 12), share=st.floats(0, 0.4))
def test_order_does_not_matter_and_it_is_a_share(seed, num_rows, share):
    packed = pack(random_bits(num_rows, 64, share, seed))
    order = torch.from_numpy(np.random.default_rng(seed).permutation(num_rows))
    value = internal_diversity(packed)
    assert value == internal_diversity(packed[order])
    assert -1e-7 <= value <= 1


def test_one_molecule_and_none():
    one = from_bits({3})
    assert internal_diversity(one).item() == 0
    assert internal_diversity(one, compat="guacamol").item() == 1
    assert internal_diversity(one, compat="tdc").isnan()
    assert internal_diversity(one[:0]).isnan()


def test_repeats_count_but_for_tdc():
    for compat, expected in [("moses", 4 / 9), ("guacamol", 7 / 9), ("tdc", 1.0)]:
        metric = InternalDiversity(compat=compat)
        metric.update(["C", "O"])
        metric.update(["C", "C1CC"])
        assert metric.compute().item() == pytest.approx(expected), compat


def test_each_definition_has_its_bits():
    assert InternalDiversity().num_bits == 1024
    assert InternalDiversity(compat="tdc").num_bits == 2048
    assert InternalDiversity(compat="guacamol").num_bits == 4096
    assert InternalDiversity(num_bits=2048).num_bits == 2048
    few, many = InternalDiversity(), InternalDiversity(num_bits=4096)
    for metric in (few, many):
        metric.update(DRUGS)
    assert few.compute() < many.compute()  # bits that collide look like likeness


@pytest.mark.parametrize("arguments", [(0, "moses"), (2, "tdc"), (1, "zinc")])
def test_what_no_definition_has(arguments):
    with pytest.raises(ValueError, match="set it to"):
        module.check_power(*arguments)
