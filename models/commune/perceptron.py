"""A linear map or a multi-layer perceptron with a closed-form derivative."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: B batch, I inputs, O outputs, W hidden units

Activation = Literal["leaky_relu", "gelu"]
LEAK = 0.2


class Perceptron(nn.Module):
    """Linear layers with an activation between them; a linear map without hidden layers.

    Args:
        num_inputs: I.
        num_outputs: O.
        hidden: Widths of the hidden layers; none: linear.
        activation: `leaky_relu` (slope 0.2 below zero) or `gelu` (exact, smooth).

    Raises:
        ValueError: on widths below 1 or an unknown activation.
    """

    def __init__(
        self,
        num_inputs: int,
        num_outputs: int,
        hidden: Sequence[int] = (),
        activation: Activation = "leaky_relu",
    ) -> None:
        super().__init__()
        if activation not in get_args(Activation):
            choices = ", ".join(get_args(Activation))
            raise ValueError(f"activation is {activation!r}: choose one of {choices}")
        widths = [num_inputs, *hidden, num_outputs]
        if min(widths) < 1:
            raise ValueError(f"layer widths are {widths}: each must be at least 1")
        self.activation: Activation = activation
        self.layers = nn.ModuleList(nn.Linear(before, after) for before, after in pairwise(widths))

    def forward(self, inputs_BI: Tensor) -> Tensor:
        """Map (..., I) to (..., O)."""
        *hidden, last = self.layers
        values = inputs_BI
        for layer in hidden:
            values = self._activate(layer(values))
        output: Tensor = last(values)
        return output

    def jacobian_factors(self, inputs_BI: Tensor) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """Return the factors of the Jacobian, for at most one hidden layer.

        Returns:
            (weight_OI, None, None) for a linear map. (out_OW, slopes_BW, in_WI) with one hidden
            layer: J_b = out diag(slopes_b) in. Differentiable in weights and inputs.

        Raises:
            ValueError: if there are more hidden layers.
        """
        weights: list[Tensor] = [layer.get_parameter("weight") for layer in self.layers]
        if len(weights) == 1:
            return weights[0], None, None
        if len(weights) > 2:
            raise ValueError(
                f"a decoder of {len(weights) - 1} hidden layers has no closed form here: choose "
                "the estimator exact, columns or probes, or at most one hidden layer"
            )
        return weights[1], self._slopes(self.layers[0](inputs_BI)), weights[0]

    def _activate(self, values: Tensor) -> Tensor:
        if self.activation == "gelu":
            return F.gelu(values)
        return F.leaky_relu(values, LEAK)

    def _slopes(self, values: Tensor) -> Tensor:
        """Compute the activation's derivative."""
        if self.activation == "gelu":
            normal_cdf = 0.5 * (1 + torch.erf(values * 0.5**0.5))
            density: Tensor = torch.exp(-0.5 * values.square()) * (2 * torch.pi) ** -0.5
            return normal_cdf + values * density
        return torch.where(values > 0, 1.0, LEAK).to(values)
