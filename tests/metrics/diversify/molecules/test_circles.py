"""#Circles: each algorithm against the program it stands for, on the same order."""

import numpy as np
import pytest
import torch
from rdkit import DataStructs
from rdkit.SimDivFilters import rdSimDivPickers

from tests.metrics.diversify.molecules.molecule_sets import (
    DRUGS,
    from_bits,
    random_bits,
    rdkit_vectors,
)
from triptych.metrics.diversify.molecules import circles as module
from triptych.metrics.diversify.molecules.circles import (
    Circles,
    chunked,
    leader,
    leader_by_bits,
    leader_by_tiles,
    maxmin,
)
from triptych.metrics.diversify.molecules.fingerprints import pack

BITS = np.concatenate(
    [
        random_bits(150, 64, 0.15, seed=5),
        random_bits(60, 64, 0.03, seed=6),  # few bits: many distances are equal to a threshold
    ]
)
# RDKit's LeaderPicker picks an empty fingerprint again and again: it is at 1 from itself.
BITS = BITS[BITS.any(1)]
VECTORS = rdkit_vectors(BITS)


def taken_one_by_one(vectors, indices, threshold):
    """The greedy loop of Xie et al.: reject what lies within the threshold of one that was kept."""
    kept = []
    for index in indices:
        nearest = [1 - DataStructs.TanimotoSimilarity(vectors[index], vectors[k]) for k in kept]
        if not nearest or min(nearest) > threshold:
            kept.append(index)
    return kept


@pytest.mark.parametrize("threshold", [0.5, 0.65, 0.75, 0.8])
@pytest.mark.parametrize("size", [1, 1024])
def test_leader_is_rdkits(threshold, size, monkeypatch):
    """On small tiles and large ones; leaving out what is near after each centre, and never."""
    monkeypatch.setattr(module, "TILE", 16 * size)
    monkeypatch.setattr(module, "_CENTRES_BETWEEN_LOOKS", size)
    picker = rdSimDivPickers.LeaderPicker()
    expected = list(picker.LazyBitVectorPick(VECTORS, len(VECTORS), threshold))
    assert leader(pack(BITS), threshold) == expected
    assert leader_by_bits(pack(BITS), threshold) == expected
    assert leader_by_tiles(pack(BITS), threshold) == expected
    assert expected == taken_one_by_one(VECTORS, range(len(VECTORS)), threshold)
    assert 5 < len(expected) < len(BITS)


@pytest.mark.parametrize("threshold", [0.65, 0.75])
def test_maxmin_takes_the_farthest(threshold):
    distance = np.array(
        [1 - np.array(DataStructs.BulkTanimotoSimilarity(v, VECTORS)) for v in VECTORS]
    )
    picks, nearest = [0], distance[0].copy()
    while True:
        nearest[picks] = -1
        if nearest.max() <= threshold:
            break
        picks.append(int(nearest.argmax()))
        nearest = np.minimum(nearest, distance[picks[-1]])
    found = maxmin(pack(BITS), threshold)
    assert len(found) == len(picks)
    assert found[:2] == picks[:2]


def test_chunked_is_the_authors_program():
    rng = np.random.default_rng(3)
    left = list(range(len(BITS)))
    for num_chunks in (64, 32, 16):
        left = [
            index
            for chunk in np.array_split(left, num_chunks)
            for index in taken_one_by_one(VECTORS, chunk.tolist(), 0.75)
        ]
        rng.shuffle(left)
    assert chunked(pack(BITS), 0.75, seed=3) == taken_one_by_one(VECTORS, left, 0.75)
    assert chunked(pack(BITS), 0.75, seed=3) != chunked(pack(BITS), 0.75, seed=4)


def test_fingerprints_of_many_bits():
    """More than an octet counts, of fingerprints that are close to each other."""
    rng = np.random.default_rng(1)
    bits = (rng.random((40, 1024)) < rng.uniform(0.1, 0.9, (40, 1))).astype(np.uint8)
    vectors = rdkit_vectors(bits)
    assert bits.sum(1).max() > 600
    for threshold in (0.3, 0.5, 0.7):
        expected = taken_one_by_one(vectors, range(40), threshold)
        assert leader_by_bits(pack(bits), threshold) == expected
        assert leader_by_tiles(pack(bits), threshold) == expected
    assert 1 < len(expected) < 40


def test_a_distance_equal_to_the_threshold():
    pair = from_bits({0, 1}, {0, 2, 3})  # 1 in common of 4
    assert leader(pair, 0.75) == [0]
    assert leader(pair, 0.75, include_equal=True) == [0, 1]
    assert maxmin(pair, 0.75) == [0]
    assert leader(pair, 0.74) == maxmin(pair, 0.74) == [0, 1]
    # 7 in common of 20: 1 - 0.35 is 0.65 in doubles too.
    pair = from_bits(set(range(14)), set(range(7, 20)))
    assert leader(pair, 0.65) == [0]
    assert leader(pair, 0.65, include_equal=True) == [0, 1]
    assert leader_by_tiles(pair, 0.65) == [0]
    assert leader_by_tiles(pair, 0.65, include_equal=True) == [0, 1]


def test_order_matters_and_can_be_given():
    # b lies between a and c, which are far from each other.
    chain = from_bits({0, 1, 2}, {2, 3}, {3, 4, 5})
    assert leader(chain, 0.75) == [0, 2]
    assert leader(chain[[1, 0, 2]], 0.75) == [0]
    metric = Circles()
    metric.update(DRUGS[:6], order=[5, 4, 3, 2, 1, 0])
    backwards = Circles()
    backwards.update(DRUGS[5::-1], order=torch.arange(6))
    assert metric.taken().tolist() == backwards.taken().tolist()
    with pytest.raises(ValueError, match="2 places in the order for 1 SMILES"):
        metric.update(["C"], order=[1, 2])


def test_empty_fingerprints_are_taken_once_each():
    empty = from_bits(set(), {1}, set())
    assert (
        leader(empty, 0.75)
        == [0, 1, 2]
        == taken_one_by_one(rdkit_vectors(np.eye(3, 64) * 0), range(3), 0.75)
    )


def test_none_one_and_repeats():
    nothing = pack(BITS[:0])
    assert leader(nothing, 0.75) == maxmin(nothing, 0.75) == chunked(nothing, 0.75) == []
    for algorithm in ("leader", "maxmin", "chunked"):
        metric = Circles(algorithm=algorithm)
        assert metric.compute() == 0
        metric.update([DRUGS[0]] * 5 + ["C1CC"])
        assert metric.compute() == 1


def test_diverse_hits_have_their_own_definition():
    metric = Circles.diverse_hits(algorithm="maxmin")
    assert (metric.threshold, metric.num_bits, metric.algorithm) == (0.65, 2048, "maxmin")
    metric.update(DRUGS)
    assert metric.compute() == len(DRUGS)


def test_settings_that_make_no_sense():
    with pytest.raises(ValueError, match=r"threshold is 1\.5"):
        Circles(threshold=1.5)
    with pytest.raises(ValueError, match="one of leader, maxmin, chunked"):
        Circles(algorithm="greedy")
    with pytest.raises(ValueError, match="set include_equal to false"):
        Circles(algorithm="maxmin", include_equal=True)
