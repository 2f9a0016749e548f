"""Training of a codec on states in memory, with Adam and a one-cycle learning rate."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from triptych.models.commune.thought_codec import ThoughtCodec
from triptych.objectives.commune.jacobian import decorrelation
from triptych.objectives.commune.jacobian_penalty import JacobianPenalty

# Shapes: N samples, B batch, H state dimensions of all agents, Z latents


@dataclass(frozen=True)
class CodecObjective:
    """mean ||x - decoder(z)||^2 + weight penalty + decorrelation_weight ||cov(z) - I||_F^2.

    Args:
        penalty: Penalty on the Jacobian of the decoder.
        weight: Weight of the penalty.
        decorrelation_weight: Weight of the decorrelation, a sum over elements.
    """

    penalty: JacobianPenalty
    weight: float
    decorrelation_weight: float

    def __call__(self, codec: ThoughtCodec, scores_BH: Tensor, ramp: float = 1.0) -> Tensor:
        """Compute the objective on standardized states; `ramp` scales the weight of the penalty."""
        latents_BZ = codec.encode_scores(scores_BH)
        loss: Tensor = (codec.decoder(latents_BZ) - scores_BH).square().sum(1).mean()
        if self.decorrelation_weight:
            spread = decorrelation(latents_BZ, reduction="sum")
            loss = loss + self.decorrelation_weight * spread
        if self.weight:
            penalty = self.penalty(codec.decoder, latents_BZ, codec.state_sizes)
            loss = loss + ramp * self.weight * penalty
        return loss


def train_codec(
    codec: ThoughtCodec,
    scores_NH: Tensor,
    objective: CodecObjective,
    num_steps: int,
    learning_rate: float,
    batch_size: int = 256,
    first_scale: float = 1.0,
) -> None:
    """Train a codec in place.

    Args:
        codec: Codec with a fitted standardizer.
        scores_NH: Standardized states.
        objective: Objective at the end of training.
        num_steps: Number of Adam steps.
        learning_rate: Maximum learning rate.
        batch_size: Samples per step.
        first_scale: Factor on the weight of the penalty. The weight rises over the first tenth of
            the steps, and the factor falls to 1 until half of them. Entries that the penalty
            removes early seldom return, so a high early weight decides while latents still move.
    """
    optimizer = torch.optim.Adam(codec.parameters(), learning_rate, fused=True)
    schedule = OneCycleLR(optimizer, learning_rate, total_steps=num_steps)
    codec.train()
    steps_per_epoch = len(scores_NH) // batch_size
    order_N = torch.arange(len(scores_NH))
    for step in range(num_steps):
        place = step % steps_per_epoch
        if place == 0:
            order_N = torch.randperm(len(scores_NH))
        start = place * batch_size
        batch_BH = scores_NH[order_N[start : start + batch_size]]
        done = step / num_steps
        ramp = min(1.0, done / 0.1) * (first_scale + (1 - first_scale) * min(1.0, done / 0.5))
        loss = objective(codec, batch_BH, ramp)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
