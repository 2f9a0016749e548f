"""Sums over the processes of a run."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def sums_over_ranks(trainer: "Trainer", *values: Tensor) -> list[Tensor]:
    """Sum several scalars over all ranks, without gradients; one collective for all of them.

    Args:
        trainer: The run's trainer.
        values: This rank's parts, of any types. They are added in float64, which is exact for
            integers up to 2^53.

    Returns:
        The sums, each in the type of its part; the parts, detached, if there is one rank.
    """
    own = [value.detach() for value in values]
    if trainer.world_size == 1:
        return own
    totals = sum_over_ranks(trainer, torch.stack([value.double() for value in own]))
    return [total.to(value.dtype) for total, value in zip(totals, own, strict=True)]


def sum_over_ranks(trainer: "Trainer", value: Tensor) -> Tensor:
    """Sum a tensor over all ranks, without a gradient; a collective.

    Lightning's `strategy.reduce` puts a barrier before the same reduction.

    Args:
        trainer: The run's trainer.
        value: This rank's part; it stays as it is.

    Returns:
        The sum, on the trainer's device; `value`, detached, if there is one rank.
    """
    own = value.detach()
    if trainer.world_size == 1:
        return own
    total = own.to(trainer.strategy.root_device, copy=True)
    torch.distributed.all_reduce(total)
    return total
