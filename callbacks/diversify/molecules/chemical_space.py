"""A map of the molecules of a search, coloured by the number of the oracle call."""

# Shapes: N molecules, K bits, M = min(N, K) components, 2 axes of the map

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from matplotlib.figure import Figure

from triptych.metrics.display.figure_style import WIDTH, styled
from triptych.metrics.diversify.molecules.fingerprints import morgan_fingerprints, unpack
from triptych.objectives.rewards.molecules.oracle_ledger import Call

# More points than this cover each other.
MOST_POINTS = 5000
Points = npt.NDArray[np.float64]


def principal_plane(smiles: Sequence[str]) -> tuple[Points, Points]:
    """Place molecules on the two principal components of their Morgan bits (radius 2, 1024 bits).

    Args:
        smiles: SMILES strings of at least two molecules.

    Returns:
        Places (N, 2), and the share of the variance along each axis, (2,). An axis points to where
        its strongest bit is set.
    """
    bits_NK = unpack(morgan_fingerprints(smiles)[1]).double()
    centred_NK = bits_NK - bits_NK.mean(0)
    # The SVD converges where the eigenvectors of the covariance, of low rank for few molecules, do
    # not.
    _, singular_R, axes_RK = torch.linalg.svd(centred_NK, full_matrices=False)
    axes_K2 = axes_RK[:2].t()
    strongest = axes_K2.abs().argmax(0)
    axes_K2 = axes_K2 * axes_K2[strongest, torch.arange(axes_K2.shape[1])].sign()
    variances_R = singular_R.square()
    shares_2 = variances_R[:2] / variances_R.sum().clamp_min(1e-12)
    return (centred_NK @ axes_K2).numpy(), shares_2.numpy()


def spread(calls: Sequence[Call], count: int) -> list[Call]:
    """Return at most `count` calls, evenly spaced over the search."""
    places = np.linspace(0, len(calls) - 1, min(count, len(calls))).round().astype(int)
    return [calls[place] for place in places]


@styled
def draw_space(calls: Sequence[Call], threshold: float) -> Figure:
    """Draw the map: all molecules on the left, the hits on the right."""
    shown = spread(calls, MOST_POINTS)
    places_N2, shares_2 = principal_plane([call.smiles for call in shown])
    numbers_N = np.array([call.number for call in shown])
    is_hit_N = np.array([call.score >= threshold for call in shown])
    figure = Figure(figsize=(WIDTH, 4.0), layout="constrained")
    axes = figure.subplots(1, 2, sharex=True, sharey=True)
    for axis, kept_N, title in (
        (axes[0], np.ones(len(shown), dtype=bool), _calls(len(shown), len(calls))),
        (axes[1], is_hit_N, f"{is_hit_N.sum():,} hits (score of at least {threshold:g})"),
    ):
        axis.scatter(*places_N2.T, s=4, color="0.9", linewidths=0)
        points = axis.scatter(
            *places_N2[kept_N].T,
            s=8,
            c=numbers_N[kept_N],
            cmap="viridis",
            vmin=1,
            vmax=numbers_N.max(),
            linewidths=0,
        )
        axis.set_title(title)
        if not kept_N.any():
            axis.text(0.5, 0.5, "no hits yet", ha="center", transform=axis.transAxes, fontsize=12)
        axis.set_xlabel(f"first principal component ({shares_2[0]:.0%} of the variance)")
    axes[0].set_ylabel(f"second ({shares_2[1]:.0%})")
    figure.colorbar(points, ax=axes, label="number of the oracle call", shrink=0.9)
    return figure


def _calls(num_shown: int, num_calls: int) -> str:
    return (
        f"all {num_calls:,} calls"
        if num_shown == num_calls
        else f"{num_shown:,} of {num_calls:,} calls"
    )
