"""Molecules for the tests of metrics: drugs, and RDKit's own fingerprints of them."""

import numpy as np
from torch import Tensor

from triptych.metrics.diversify.molecules.fingerprints import pack

DRUGS = [
    "CC(=O)Oc1ccccc1C(=O)O",
    "CC(=O)Nc1ccc(O)cc1",
    "CC(C)Cc1ccc(C(C)C(=O)O)cc1",
    "Cn1cnc2c1c(=O)n(C)c(=O)n2C",
    "CN1C(=O)CN=C(c2ccccc2)c2cc(Cl)ccc21",
    "COc1ccc2[nH]c(S(=O)Cc3ncc(C)c(OC)c3C)nc2c1",
    "CC(C)NCC(O)COc1cccc2ccccc12",
    "CN(C)CCCN1c2ccccc2CCc2ccccc21",
    "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "NC(=O)c1cnccn1",
    "O=C(O)c1cn(C2CC2)c2cc(N3CCNCC3)c(F)cc2c1=O",
    "CN(C)C(=N)NC(=N)N",
]


def from_bits(*rows: set[int], num_bits: int = 64) -> Tensor:
    """Pack fingerprints given as the places of their bits."""
    bits = np.zeros((len(rows), num_bits), np.uint8)
    for row, places in enumerate(rows):
        bits[row, sorted(places)] = 1
    return pack(bits)


def random_bits(num_rows: int, num_bits: int, share: float, seed: int) -> np.ndarray:
    """Draw fingerprints with about a share of their bits set."""
    rng = np.random.default_rng(seed)
    return (rng.random((num_rows, num_bits)) < share).astype(np.uint8)


def rdkit_vectors(bits: np.ndarray) -> list:
    """Make RDKit's bit vectors from zeros and ones, bit by bit."""
    from rdkit import DataStructs

    vectors = []
    for row in bits:
        vector = DataStructs.ExplicitBitVect(len(row))
        vector.SetBitsFromList(np.flatnonzero(row).tolist())
        vectors.append(vector)
    return vectors
