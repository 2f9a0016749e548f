"""Access to attributes that Lightning sets on its trainer without declaring them."""

from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor


def data_of(module: LightningModule) -> Any:
    """Return the datamodule that a module runs with."""
    trainer: Any = module.trainer
    return trainer.datamodule


def is_dry_run(module: LightningModule) -> bool:
    """Tell whether the run is a trial of a few batches (`fast_dev_run`)."""
    trainer: Any = module.trainer
    return bool(trainer.fast_dev_run)


def sum_over_ranks(module: LightningModule, value: Tensor) -> Tensor:
    """Sum a tensor over all processes; `value` itself is not changed.

    Args:
        module: Module that is attached to the trainer.
        value: This process's tensor.
    """
    if module.trainer.world_size == 1:
        return value
    own = value.to(module.device, copy=True)  # the strategy reduces in place
    total: Tensor = module.trainer.strategy.reduce(own, reduce_op="sum")
    return total
