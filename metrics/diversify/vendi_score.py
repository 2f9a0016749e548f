"""The Vendi score: an effective number from the eigenvalues of a similarity matrix.

Source: The Vendi Score, 2210.02410, definition 3.1; orders q other than 1: Cousins of the Vendi
Score, 2310.12952.

Shapes: N samples, D width of an embedding, R eigenvalues.
"""

import math
from typing import Any

import torch
from torch import Tensor


def cosine_spectrum(embeddings_ND: Tensor) -> Tensor:
    """Eigenvalues of K / N, with K the cosines of N embeddings.

    With X of unit rows, X X^T / N and X^T X / N have the same nonzero eigenvalues. The smaller one
    is decomposed, in min(N, D)^3 operations instead of N^3.

    Args:
        embeddings_ND: Embeddings, no row of zeros.

    Returns:
        float64 (min(N, D),), ascending; they sum to 1.

    >>> cosine_spectrum(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 0.0]]))
    tensor([0.3333, 0.6667], dtype=torch.float64)
    """
    unit_ND = torch.nn.functional.normalize(embeddings_ND.double(), dim=-1)
    num_samples, width = unit_ND.shape
    smaller = unit_ND @ unit_ND.T if num_samples <= width else unit_ND.T @ unit_ND
    eigenvalues: Tensor = torch.linalg.eigvalsh(smaller / num_samples)
    return eigenvalues


def kernel_spectrum(kernel_NN: Tensor) -> Tensor:
    """Eigenvalues of K / N for any similarity.

    Args:
        kernel_NN: K, symmetric and positive semi-definite, with ones on its diagonal.

    Returns:
        float64 (N,), ascending.

    Raises:
        ValueError: If K is not square and symmetric with ones on its diagonal.
    """
    kernel_NN = kernel_NN.double()
    if kernel_NN.ndim != 2 or kernel_NN.shape[0] != kernel_NN.shape[1]:
        raise ValueError(f"a kernel is a square matrix, got shape {tuple(kernel_NN.shape)}.")
    if not torch.allclose(kernel_NN, kernel_NN.T):
        raise ValueError("the kernel is not symmetric: similarity must not depend on the order.")
    if not torch.allclose(kernel_NN.diagonal(), kernel_NN.new_ones(())):
        raise ValueError(
            "the kernel's diagonal is not 1: divide by the roots of self-similarities."
        )
    eigenvalues: Tensor = torch.linalg.eigvalsh(kernel_NN / len(kernel_NN))
    return eigenvalues


def vendi_of_spectrum(eigenvalues_R: Tensor, order: float = 1.0) -> float:
    """Exponentiate the Rényi entropy of order q: (sum_r p_r^q)^(1 / (1 - q)).

    Args:
        eigenvalues_R: p, non-negative up to rounding, with sum 1. Values that are zero up to
            rounding (below R eps times the largest) are left out, since orders below 1 count them.
        order: q. 1: exp(-sum p ln p). 0: the number of nonzero ones. Infinity: 1 / max p.

    Returns:
        A number from 1 to R.

    >>> p = torch.tensor([0.5, 0.25, 0.25])
    >>> [round(vendi_of_spectrum(p, q), 4) for q in (0, 1, 2, math.inf)]
    [3.0, 2.8284, 2.6667, 2.0]
    """
    p = eigenvalues_R.double()
    p = p[p > len(p) * torch.finfo(torch.float64).eps * p.max()]
    if order == 1:
        return float(torch.special.entr(p).sum().exp())
    if math.isinf(order):
        return 1 / float(p.max())
    power: float = float((p**order).sum()) ** (1 / (1 - order))
    return power


def vendi_of_package(embeddings_ND: Any, order: float) -> float:
    """Reproduce `vendi-score` 0.0.3 for a numpy array (N, D), with its bugs: see `VendiScore`."""
    import numpy as np
    from scipy.linalg import eigvalsh
    from sklearn.preprocessing import normalize

    num_samples, width = embeddings_ND.shape
    unit_ND = normalize(embeddings_ND, axis=1)
    if num_samples < width:
        order = 1
        eigenvalues = eigvalsh(unit_ND @ unit_ND.T / num_samples)
    else:
        eigenvalues = eigvalsh(unit_ND.T @ unit_ND / num_samples)
    positive = eigenvalues[eigenvalues > 0]
    if order == 1:
        entropy = -(positive * np.log(positive)).sum()
    elif math.isinf(order):
        entropy = -np.log(np.max(eigenvalues))
    else:
        entropy = np.log((positive**order).sum()) / (1 - order)
    return float(np.exp(entropy))
