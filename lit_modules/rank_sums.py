"""Sums over the processes of a run."""

from lightning.pytorch import LightningModule
from torch import Tensor


def sum_over_ranks(module: LightningModule, value: Tensor) -> Tensor:
    """Add up what every process has; `value` itself stays as it is.

    Args:
        module: Says which processes there are, and on which device they add.
        value: Of this process.
    """
    if module.trainer.world_size == 1:
        return value
    own = value.to(module.device, copy=True)  # the strategy adds in place
    total: Tensor = module.trainer.strategy.reduce(own, reduce_op="sum")
    return total
