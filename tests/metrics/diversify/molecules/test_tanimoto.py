"""Fingerprints and their similarities, against RDKit and by hand."""

import numpy as np
import pytest
import torch
from rdkit import Chem, DataStructs
from rdkit.Chem import rdFingerprintGenerator

from tests.metrics.diversify.molecules.molecule_sets import (
    DRUGS,
    from_bits,
    random_bits,
    rdkit_vectors,
)
from triptych.metrics.diversify.molecules import tanimoto
from triptych.metrics.diversify.molecules.circles import bit_vectors
from triptych.metrics.diversify.molecules.fingerprints import (
    count_bits,
    morgan_fingerprints,
    pack,
    unpack,
)
from triptych.metrics.diversify.molecules.tanimoto import (
    distances,
    similarities,
    symmetric_tiles,
    unpacked,
)


@pytest.mark.parametrize("num_bits", [1024, 2048])
def test_similarities_of_molecules_are_rdkits(num_bits):
    is_valid, packed = morgan_fingerprints([*DRUGS, "C1CC"], num_bits=num_bits)
    assert is_valid.tolist() == [True] * len(DRUGS) + [False]
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=2, fpSize=num_bits)
    vectors = [generator.GetFingerprint(Chem.MolFromSmiles(text)) for text in DRUGS]
    expected = [DataStructs.BulkTanimotoSimilarity(vector, vectors) for vector in vectors]
    bits = unpacked(packed)
    assert (1 - distances(bits, bits)).tolist() == (1 - (1 - np.array(expected))).tolist()
    torch.testing.assert_close(
        similarities(bits, bits), torch.tensor(expected).float(), rtol=1e-7, atol=0
    )
    assert [list(v.GetOnBits()) for v in bit_vectors(packed)] == [
        list(v.GetOnBits()) for v in vectors
    ]


@pytest.mark.parametrize("dtype", [torch.int8, torch.float32, torch.float16])
def test_every_kind_of_product_is_exact(monkeypatch, dtype):
    monkeypatch.setattr(tanimoto, "_product_dtype", lambda device, most: dtype)
    dense = random_bits(40, 4096, 0.45, seed=1)
    packed = pack(dense)
    found = tanimoto.intersections(unpacked(packed), unpacked(packed[:7]))
    expected = dense.astype(np.int64) @ dense[:7].astype(np.int64).T
    assert expected.max() > 1500
    assert found.tolist() == expected.tolist()


def test_a_gpu_counts_in_float32_where_float16_would_round():
    gpu = torch.device("cuda")
    assert tanimoto._product_dtype(gpu, 2048) == torch.float16
    assert tanimoto._product_dtype(gpu, 2049) == torch.float32


def test_packing_keeps_every_bit():
    bits = random_bits(5, 192, 0.3, seed=2)
    packed = pack(bits)
    assert packed.shape == (5, 3)
    assert unpack(packed).tolist() == bits.tolist()
    assert count_bits(packed).tolist() == bits.sum(1).tolist()


def test_two_empty_fingerprints():
    bits = unpacked(from_bits(set(), {1}, set()))
    assert similarities(bits, bits).tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    assert similarities(bits, bits, both_empty=0.0)[0].tolist() == [0, 0, 0]
    assert distances(bits, bits)[0].tolist() == [1, 1, 1]  # as RDKit has it
    (first, *_), _ = rdkit_vectors(np.zeros((2, 64), np.uint8)), None
    assert DataStructs.TanimotoSimilarity(first, first) == 0.0


def test_tiles_meet_every_pair(monkeypatch):
    monkeypatch.setattr(tanimoto, "TILE", 3)
    packed = pack(random_bits(8, 64, 0.3, seed=3))
    met = torch.zeros(8, 8)
    values = torch.zeros(8, 8)
    for rows, columns, tile in symmetric_tiles(packed):
        met[rows, columns] += 1
        values[rows, columns] = tile
        if rows != columns:
            met[columns, rows] += 1
            values[columns, rows] = tile.T
    assert met.eq(1).all()
    whole = unpacked(packed)
    assert values.tolist() == similarities(whole, whole).tolist()


def test_fingerprints_that_cannot_be_packed():
    with pytest.raises(ValueError, match="multiple of 64"):
        morgan_fingerprints(["C"], num_bits=100)
    with pytest.raises(ValueError, match="radius is -1"):
        morgan_fingerprints(["C"], radius=-1)
