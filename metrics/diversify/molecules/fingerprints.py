"""Morgan fingerprints, packed into 64-bit words.

Shapes: N molecules, K bits, W = K / 64 words
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.gathered_metric import GatheredMetric
from triptych.models.diversify.molecules.molecule import read_molecule


def check_fingerprint(radius: int, num_bits: int) -> None:
    """Check that fingerprints of this kind can be packed.

    Raises:
        ValueError: If `radius` is negative or `num_bits` is not a positive multiple of 64.
    """
    if radius < 0:
        raise ValueError(f"radius is {radius}: set it to at least 0")
    if num_bits < 64 or num_bits % 64:
        raise ValueError(f"num_bits is {num_bits}: set it to a multiple of 64, such as 1024")


def morgan_fingerprints(
    smiles: Sequence[str], radius: int = 2, num_bits: int = 1024
) -> tuple[Tensor, Tensor]:
    """Compute RDKit's Morgan fingerprints of molecules, without chirality.

    Args:
        smiles: SMILES strings, valid or not.
        radius: In bonds; 2 is ECFP4.
        num_bits: K, a multiple of 64.

    Returns:
        is_valid_N bool, True for valid strings; packed int64 (valid, W) of those.
    """
    from rdkit.Chem import rdFingerprintGenerator

    check_fingerprint(radius, num_bits)
    generator = rdFingerprintGenerator.GetMorganGenerator(radius=radius, fpSize=num_bits)
    molecules = [read_molecule(text) for text in smiles]
    bits = [generator.GetFingerprintAsNumPy(m) for m in molecules if m is not None]
    is_valid_N = torch.tensor([m is not None for m in molecules], dtype=torch.bool)
    bits_NK = np.stack(bits) if bits else np.zeros((0, num_bits), np.uint8)
    return is_valid_N, pack(bits_NK)


def pack(bits_NK: np.ndarray) -> Tensor:
    """Pack zeros and ones, int64 (N, W)."""
    packed = np.packbits(bits_NK.astype(np.uint8), axis=1)
    shape = (len(bits_NK), bits_NK.shape[1] // 64)  # torch cannot view empty arrays
    return torch.from_numpy(np.frombuffer(packed.tobytes(), np.int64).reshape(shape).copy())


def unpack(packed_NW: Tensor) -> Tensor:
    """Unpack to zeros and ones, int8 (N, K), on the device of `packed_NW`."""
    octets = packed_NW.contiguous().cpu().numpy().view(np.uint8)
    return torch.from_numpy(np.unpackbits(octets, axis=1).view(np.int8)).to(packed_NW.device)


def count_bits(packed_NW: Tensor) -> Tensor:
    """Count the set bits, int64 (N,)."""
    words = packed_NW.cpu().numpy().view(np.uint64)
    counts_N = np.bitwise_count(words).sum(1, dtype=np.int64)
    return torch.from_numpy(counts_N).to(packed_NW.device)


def sorted_rows(packed_NW: Tensor) -> Tensor:
    """Sort fingerprints by their words, with repeats."""
    if not len(packed_NW):
        return packed_NW
    unique, counts = torch.unique(packed_NW, dim=0, return_counts=True)
    repeated: Tensor = unique.repeat_interleave(counts, dim=0)
    return repeated


class FingerprintMetric(GatheredMetric):
    """Keeps the fingerprints of the valid molecules seen.

    Args:
        radius: Radius of the Morgan fingerprint, in bonds.
        num_bits: K, a multiple of 64.
        kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(self, radius: int, num_bits: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_fingerprint(radius, num_bits)
        self.radius, self.num_bits = radius, num_bits
        self.add_row_state("packed", torch.int64)

    def update(self, smiles: Sequence[str]) -> None:
        """Add SMILES strings; invalid ones are left out, repeats are kept."""
        self.append_rows("packed", morgan_fingerprints(smiles, self.radius, self.num_bits)[1])

    @property
    def fingerprints(self) -> Tensor:
        """The packed fingerprints seen, int64 (N, W); inside `compute`, of all ranks."""
        return self.rows("packed").view(-1, self.num_bits // 64)
