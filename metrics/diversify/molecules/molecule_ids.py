"""Ids of molecules for tensors: 128-bit hashes of canonical SMILES strings.

Ranks exchange tensors, not strings. Two of a billion molecules share an id with a probability below
1e-20.
"""

# Shapes: N molecules

from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor

from triptych.models.diversify.molecules.molecule import canonical_smiles


def text_ids(texts: Iterable[str]) -> Tensor:
    """Hash texts, int64 (N, 2)."""
    digests = b"".join(blake2b(text.encode(), digest_size=16).digest() for text in texts)
    return torch.from_numpy(np.frombuffer(bytearray(digests), dtype=np.int64).reshape(-1, 2))


def molecule_ids(smiles: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Hash molecules by their canonical SMILES.

    Args:
        smiles: SMILES strings, canonical or not.

    Returns:
        is_valid_N bool, True for valid strings; ids int64 (valid, 2) of those.
    """
    canonical = [canonical_smiles(text) for text in smiles]
    is_valid_N = torch.tensor([text is not None for text in canonical], dtype=torch.bool)
    return is_valid_N, text_ids(text for text in canonical if text is not None)


def unique_rows(ids_N2: Tensor) -> Tensor:
    """Return the different rows, sorted."""
    return torch.unique(ids_N2, dim=0) if len(ids_N2) else ids_N2
