"""Trains a codec on states held in memory, by Adam with one cycle of the learning rate."""

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
        penalty: On the decoder's Jacobian.
        weight: Of the penalty.
        decorrelation_weight: Of the decorrelation, a sum over elements.
    """

    penalty: JacobianPenalty
    weight: float
    decorrelation_weight: float

    def __call__(self, codec: ThoughtCodec, scores_BH: Tensor, ramp: float = 1.0) -> Tensor:
        """The objective on standardized states; `ramp` scales the penalty's weight."""
        latents_BZ = codec.encode_scores(scores_BH)
        error = (codec.decoder(latents_BZ) - scores_BH).square().sum(1).mean()
        loss = error
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
    """Train in place.

    Args:
        codec: Its standardizer is fitted already.
        scores_NH: Standardized states.
        objective: What is minimised in the end.
        num_steps: Steps of Adam.
        learning_rate: Its highest.
        batch_size: Samples a step.
        first_scale: The penalty's weight rises over the first tenth of the steps, is this many
            times too high, and comes down to its own until half of them: what it switches off early
            seldom comes back, so more is decided while latents can still change places.
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
