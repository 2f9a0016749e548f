"""Per-dimension z-scores of agents' states; the statistics are saved with the model."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

# Shapes: N samples, B batch, H dimensions of all agents' states together


class StateStandardizer(nn.Module):
    """Shifts and scales every dimension to zero mean and unit variance.

    Statistics come from `fit`, never from a batch, so z-scores do not depend on the batch.

    Args:
        num_dimensions: H.

    >>> standardizer = StateStandardizer(1)
    >>> standardizer.fit(torch.tensor([[1.0], [3.0]]))
    >>> standardizer(torch.tensor([[5.0]]))
    tensor([[3.]])
    """

    mean_H: Tensor
    scale_H: Tensor
    is_fitted: Tensor

    def __init__(self, num_dimensions: int) -> None:
        super().__init__()
        self.register_buffer("mean_H", torch.zeros(num_dimensions))
        self.register_buffer("scale_H", torch.ones(num_dimensions))
        self.register_buffer("is_fitted", torch.tensor(False))

    @torch.no_grad()
    def fit(self, batches: Tensor | Iterable[Tensor]) -> None:
        """Set the mean and the (biased) standard deviation of every dimension.

        Sums are in float64 around the running mean, so the number of batches does not matter. A
        constant dimension has the scale 1 and becomes 0.

        Args:
            batches: States (N, H), or batches of them.

        Raises:
            ValueError: if there are no states, or they have another width or are not finite.
        """
        count = 0
        mean_H = torch.zeros_like(self.mean_H, dtype=torch.float64)
        squares_H = torch.zeros_like(mean_H)
        for states_NH in [batches] if isinstance(batches, Tensor) else batches:
            if states_NH.ndim != 2 or states_NH.shape[1] != len(mean_H):
                raise ValueError(
                    f"states have shape {tuple(states_NH.shape)}, expected (samples, "
                    f"{len(mean_H)}): the states of all agents side by side"
                )
            if not states_NH.isfinite().all():
                raise ValueError("states hold nan or infinity: look at the model they come from")
            if not len(states_NH):
                continue
            values_NH = states_NH.to(mean_H)
            batch_mean_H = values_NH.mean(0)
            total = count + len(values_NH)
            shift_H = batch_mean_H - mean_H
            squares_H += (values_NH - batch_mean_H).square().sum(0)
            squares_H += shift_H.square() * (count * len(values_NH) / total)
            mean_H += shift_H * (len(values_NH) / total)
            count = total
        if count == 0:
            raise ValueError("there are no states to take statistics of: give at least one sample")
        scale_H = (squares_H / count).sqrt()
        # The rounding error of a constant dimension is no scale.
        moves_H = scale_H > 1e-12 * (1 + mean_H.abs())
        self.mean_H.copy_(mean_H)
        self.scale_H.copy_(torch.where(moves_H, scale_H, torch.ones_like(scale_H)))
        self.is_fitted.fill_(True)

    def forward(self, states_BH: Tensor) -> Tensor:
        """Convert states to z-scores.

        Raises:
            ValueError: if `fit` was not called.
        """
        self._check_fitted()
        return (states_BH - self.mean_H) / self.scale_H

    def inverse(self, scores_BH: Tensor) -> Tensor:
        """Convert z-scores to states."""
        self._check_fitted()
        return scores_BH * self.scale_H + self.mean_H

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise ValueError("the statistics of the states are missing: call `fit` on them first")
