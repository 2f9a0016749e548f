"""Recovery of true latents: one by one, and as blocks.

Both metrics keep cross-moments of true and recovered latents. Correlations and least squares follow
exactly from these, so any split of the data gives the same value.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric
from triptych.objectives.commune.structure.matching import match_latents

# Shapes: B batch, N samples, Z true latents, Y recovered latents, D = Z + Y, G groups


class MeanCorrelation(SummedMetric):
    """MCC: the mean absolute correlation of true latents and their matched recovered ones.

    Matching is one to one and maximises the sum of absolute correlations (Hungarian algorithm). The
    mean runs over all true latents, so a latent that was not recovered counts with the correlation
    of its partner.

    Spearman's correlation is Pearson's of ranks, and ranks are only known from all data. They are
    therefore taken among reference samples: pass the evaluation data for Spearman's exact value, or
    a sample of them for an approximation.

    Args:
        num_true: Z.
        num_recovered: Y, at least Z.
        rank_among: References (true (N, Z), recovered (N, Y)) for Spearman's correlation; null:
            Pearson's.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: if sizes do not fit.

    >>> metric = MeanCorrelation(2, 2)
    >>> true = torch.tensor([[1.0, 5.0], [2.0, 3.0], [3.0, 5.0]])
    >>> metric.update(true, -2 * true.flip(1))
    >>> metric.compute()
    tensor(1., dtype=torch.float64)
    """

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    num_samples: Tensor
    sum_D: Tensor
    outer_sum_DD: Tensor

    def __init__(
        self,
        num_true: int,
        num_recovered: int,
        rank_among: tuple[Tensor, Tensor] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if not 1 <= num_true <= num_recovered:
            raise ValueError(
                f"num_true is {num_true} and num_recovered {num_recovered}: every true latent "
                "needs a recovered one of its own"
            )
        self.num_true, self.num_recovered = num_true, num_recovered
        self._references: list[Tensor] | None = None
        if rank_among is not None:
            for reference, width in zip(rank_among, (num_true, num_recovered), strict=True):
                _check_width("a reference of rank_among", reference, width)
            self._references = [r.double().mT.sort().values.contiguous() for r in rank_among]
        width = num_true + num_recovered
        self.add_sum("num_samples", torch.int64)
        self.add_sum("sum_D", torch.float64, (width,))
        self.add_sum("outer_sum_DD", torch.float64, (width, width))

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric (Spearman's) and batches of unequal size."""
        generator = torch.Generator().manual_seed(0)
        true = torch.randn(9, 2, generator=generator, dtype=torch.float32)
        recovered = torch.randn(9, 3, generator=generator, dtype=torch.float32) + true[:, [0, 0, 1]]
        batches = [
            (true[:4], recovered[:4]),
            (true[4:8], recovered[4:8]),
            (true[8:], recovered[8:]),
        ]
        return cls(2, 3, rank_among=(true, recovered)), batches

    def update(self, true_BZ: Tensor, recovered_BY: Tensor) -> None:
        """Add samples.

        Raises:
            ValueError: if shapes do not fit.
        """
        _check_width("true latents", true_BZ, self.num_true)
        _check_width("recovered latents", recovered_BY, self.num_recovered)
        _check_lengths(true_BZ, recovered_BY)
        sides = [true_BZ.double(), recovered_BY.double()]
        if self._references is not None:
            sides = [
                _ranks(side, reference.to(side.device))
                for side, reference in zip(sides, self._references, strict=True)
            ]
        both_BD = torch.cat(sides, 1)
        self.num_samples = self.num_samples + len(both_BD)
        self.sum_D = self.sum_D + both_BD.sum(0)
        self.outer_sum_DD = self.outer_sum_DD + both_BD.mT @ both_BD

    def correlations(self) -> Tensor:
        """Compute correlations of this process's samples, (Z, Y); 0 for constant latents."""
        covariance_DD = _covariance(self.num_samples, self.sum_D, self.outer_sum_DD)
        mean_square_D = self.outer_sum_DD.diagonal() / self.num_samples
        variance_D = covariance_DD.diagonal()
        moves_D = variance_D > 1e-12 * mean_square_D
        scale_D = torch.where(moves_D, variance_D.clamp_min(0), torch.inf).rsqrt()
        both_DD = covariance_DD * scale_D[:, None] * scale_D
        return both_DD[: self.num_true, self.num_true :].clamp(-1, 1)

    def compute(self) -> Tensor:
        """Return the mean in [0, 1] as a float64 scalar; nan before the second sample."""
        if self.num_samples < 2:
            return torch.full_like(self.sum_D[0], torch.nan)
        similarity_ZY = self.correlations()
        order = match_latents(similarity_ZY)
        return similarity_ZY[range(self.num_true), order].abs().mean()


class BlockR2(SummedMetric):
    """The held-out R^2 of each group of true latents from each group of recovered ones.

    Least squares with an intercept are fitted on some samples and scored on others. A high value on
    the diagonal means that the block was recovered, off the diagonal that it leaked into another.

    Args:
        true_groups: For each true latent its group, 0 to G - 1.
        recovered_groups: For each recovered latent its group, such as found by its support. Null:
            the group of its matched true latent by correlation (needs as many recovered as true
            latents).
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: if a true group is empty, or a recovered latent has another group.

    >>> metric = BlockR2([0, 1], [1, 0])
    >>> true = torch.tensor([[1.0, 4.0], [-1.0, 2.0], [2.0, -3.0], [5.0, 1.0]])
    >>> metric.update(true, true.flip(1) * 3 + 1, torch.tensor([True, True, True, False]))
    >>> metric.update(true, true.flip(1) * 3 + 1, torch.tensor([False, False, True, True]))
    >>> metric.compute().diagonal().round(decimals=6)
    tensor([1., 1.], dtype=torch.float64)
    """

    higher_is_better = None
    num_samples: Tensor
    sum_D: Tensor
    outer_sum_DD: Tensor
    num_held_out: Tensor
    held_out_sum_D: Tensor
    held_out_outer_sum_DD: Tensor

    def __init__(
        self,
        true_groups: Sequence[int],
        recovered_groups: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.true_groups = list(true_groups)
        self.recovered_groups = None if recovered_groups is None else list(recovered_groups)
        found = sorted(set(self.true_groups))
        if not found or found != list(range(len(found))):
            raise ValueError(f"true_groups names {found}: number the groups 0, 1, ... without gaps")
        self.num_groups = len(found)
        if wrong := sorted(set(self.recovered_groups or []) - set(found)):
            raise ValueError(f"recovered_groups names {wrong}: there are groups {found}")
        num_recovered = len(true_groups if recovered_groups is None else recovered_groups)
        self.num_true, self.num_recovered = len(self.true_groups), num_recovered
        width = self.num_true + num_recovered
        for prefix in ("", "held_out_"):
            self.add_sum("num_held_out" if prefix else "num_samples", torch.int64)
            self.add_sum(f"{prefix}sum_D", torch.float64, (width,))
            self.add_sum(f"{prefix}outer_sum_DD", torch.float64, (width, width))

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of which the last is held out."""
        generator = torch.Generator().manual_seed(0)
        true = torch.randn(24, 3, generator=generator, dtype=torch.float32)
        recovered = true[:, [2, 0, 1]] + 0.3 * torch.randn(
            24, 3, generator=generator, dtype=torch.float32
        )
        held_out = torch.arange(24) >= 12
        return cls([0, 1, 1]), [
            (part, other, mask)
            for part, other, mask in zip(
                true.split(8), recovered.split(8), held_out.split(8), strict=True
            )
        ]

    def update(self, true_BZ: Tensor, recovered_BY: Tensor, held_out_mask_B: Tensor) -> None:
        """Add samples.

        Args:
            true_BZ: True latents.
            recovered_BY: Recovered latents.
            held_out_mask_B: bool; True: score on it, False: fit on it.

        Raises:
            ValueError: if shapes do not fit.
        """
        _check_width("true latents", true_BZ, self.num_true)
        _check_width("recovered latents", recovered_BY, self.num_recovered)
        _check_lengths(true_BZ, recovered_BY)
        if held_out_mask_B.shape != true_BZ.shape[:1] or held_out_mask_B.dtype != torch.bool:
            raise ValueError("held_out_mask must be a bool for each sample")
        both_BD = torch.cat([true_BZ, recovered_BY], 1).double()
        fit_D, scored_D = both_BD[~held_out_mask_B], both_BD[held_out_mask_B]
        self.num_samples = self.num_samples + len(fit_D)
        self.sum_D = self.sum_D + fit_D.sum(0)
        self.outer_sum_DD = self.outer_sum_DD + fit_D.mT @ fit_D
        self.num_held_out = self.num_held_out + len(scored_D)
        self.held_out_sum_D = self.held_out_sum_D + scored_D.sum(0)
        self.held_out_outer_sum_DD = self.held_out_outer_sum_DD + scored_D.mT @ scored_D

    def compute(self) -> Tensor:
        """Return (G, G): mean R^2 of the true latents of group g from recovered group h.

        At most 1; below 0 if the fit is worse than the held-out mean; 0 for a group without
        recovered latents. nan with fewer than two samples of either kind.
        """
        shape = (self.num_groups, self.num_groups)
        if self.num_samples < 2 or self.num_held_out < 2:
            return torch.full(shape, torch.nan, dtype=torch.float64, device=self.sum_D.device)
        covariance_DD = _covariance(self.num_samples, self.sum_D, self.outer_sum_DD)
        mean_D = self.sum_D / self.num_samples
        held_mean_D = self.held_out_sum_D / self.num_held_out
        held_DD = _covariance(self.num_held_out, self.held_out_sum_D, self.held_out_outer_sum_DD)
        shift_D = held_mean_D - mean_D
        # Held-out second moments around the means of the fit.
        moved_DD = held_DD + shift_D[:, None] * shift_D
        groups = self._aligned_groups(covariance_DD)
        result = self.sum_D.new_zeros(shape)
        for row in range(self.num_groups):
            ys = [latent for latent, group in enumerate(self.true_groups) if group == row]
            for column in range(self.num_groups):
                xs = [self.num_true + i for i, group in enumerate(groups) if group == column]
                if not xs:
                    continue
                weights = (
                    torch.linalg.pinv(covariance_DD[xs][:, xs], hermitian=True)
                    @ (covariance_DD[xs][:, ys])
                )
                explained = (weights * moved_DD[xs][:, ys]).sum(0)
                predicted = (weights * (moved_DD[xs][:, xs] @ weights)).sum(0)
                error = moved_DD.diagonal()[ys] - 2 * explained + predicted
                result[row, column] = (1 - error / held_DD.diagonal()[ys]).mean()
        return result

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Plot the matrix as an image, true groups downwards; of several values the last.

        Args:
            val: What `compute` or `forward` returned, or a list of these; None: what `compute`
                returns now.
            ax: matplotlib axes to draw on; None: a new figure.

        Returns:
            The figure (None where `ax` was given) and its axes.
        """
        from matplotlib import pyplot as plt

        shown = self.compute() if val is None else val
        shown = shown if isinstance(shown, Tensor) else shown[-1]
        matrix_GG = shown.reshape(self.num_groups, self.num_groups).cpu().numpy()
        figure, axes = plt.subplots() if ax is None else (None, ax)
        axes.imshow(matrix_GG, vmin=0, vmax=1)
        axes.set_xlabel("recovered group")
        axes.set_ylabel("true group")
        axes.set_title(type(self).__name__)
        return figure, axes

    def _aligned_groups(self, covariance_DD: Tensor) -> list[int]:
        if self.recovered_groups is not None:
            return self.recovered_groups
        scale_D = covariance_DD.diagonal().clamp_min(1e-300).rsqrt()
        similarity = (covariance_DD * scale_D[:, None] * scale_D)[: self.num_true, self.num_true :]
        groups = [0] * self.num_recovered
        for latent, recovered in enumerate(match_latents(similarity)):
            groups[recovered] = self.true_groups[latent]
        return groups


def _covariance(num_samples: Tensor, sum_D: Tensor, outer_sum_DD: Tensor) -> Tensor:
    mean_D = sum_D / num_samples
    return outer_sum_DD / num_samples - mean_D[:, None] * mean_D


def _ranks(values_BD: Tensor, sorted_DN: Tensor) -> Tensor:
    """Compute ranks among sorted references, from -1/2 to 1/2; ties get their mean rank."""
    values_DB = values_BD.mT.contiguous()
    below = torch.searchsorted(sorted_DN, values_DB)
    up_to = torch.searchsorted(sorted_DN, values_DB, right=True)
    return ((below + up_to).mT.double() / 2) / sorted_DN.shape[1] - 0.5


def _check_width(what: str, values: Tensor, width: int) -> None:
    if values.ndim != 2 or values.shape[1] != width:
        raise ValueError(f"{what} have shape {tuple(values.shape)}, expected (samples, {width})")


def _check_lengths(true_BZ: Tensor, recovered_BY: Tensor) -> None:
    if len(true_BZ) != len(recovered_BY):
        raise ValueError(
            f"there are {len(true_BZ)} samples of true and {len(recovered_BY)} of recovered latents"
        )
