"""Sums over the processes of a run."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


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
