"""What Lightning sets on its trainer and does not declare."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor


def data_of(module: LightningModule) -> Any:
    """The datamodule that a module runs with."""
    trainer: Any = module.trainer
    return trainer.datamodule


def is_dry_run(module: LightningModule) -> bool:
    """Whether the run is one of few batches, to see that it goes through (`fast_dev_run`)."""
    trainer: Any = module.trainer
    return bool(trainer.fast_dev_run)


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
