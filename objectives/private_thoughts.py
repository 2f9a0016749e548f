"""An adversary that looks for private thoughts in shared ones, and an encoder that hides them.

A masked encoder reads an agent's private latents from its state alone; shared latents read
everyone's, and may carry what is private along (a linear probe finds it). The adversary predicts
every private latent from all shared ones; its gradient is reversed on the way to the encoder, so
that it gets better at predicting while the encoder leaves it less to predict from.

Ours; gradient reversal is that of Ganin and Lempitsky, 2015.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from models.perceptron import Perceptron

# Shapes: B batch, Z latents, S shared latents, P private latents


class _Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return -grads[0]


def reverse_gradient(values: Tensor) -> Tensor:
    """The values themselves, with the negative of their gradient.

    >>> x = torch.tensor(3.0, requires_grad=True)
    >>> reverse_gradient(x).square().backward()
    >>> x.grad
    tensor(-6.)
    """
    reversed_: Tensor = _Reversed.apply(values)
    return reversed_


class Adversary(nn.Module):
    """Predicts private latents from shared ones; minimising its value trains both sides.

    Private latents are targets without a gradient: they are not to become harder to predict by
    becoming noise.

    Args:
        owners: For each latent its agent's number, or `everyone`.
        everyone: What stands for a shared one.
        hidden: Width of its hidden layer.

    Raises:
        ValueError: if there are no private or no shared latents.
    """

    def __init__(self, owners: Sequence[int], everyone: int, hidden: int = 64) -> None:
        super().__init__()
        self.shared = [z for z, owner in enumerate(owners) if owner == everyone]
        self.private = [z for z, owner in enumerate(owners) if owner != everyone]
        if not self.shared or not self.private:
            raise ValueError(
                "an adversary needs latents that are shared and latents that are private: set "
                "codec.private_per_agent above 0 and below the number of latents by agent"
            )
        self.predictor = Perceptron(len(self.shared), len(self.private), [hidden], "gelu")

    def forward(self, latents_BZ: Tensor) -> Tensor:
        """Mean squared error of the prediction; 1: nothing of the private latents was found."""
        shared_BS = reverse_gradient(latents_BZ[:, self.shared])
        private_BP = latents_BZ[:, self.private].detach()
        error: Tensor = (self.predictor(shared_BS) - private_BP).square().mean()
        return error
