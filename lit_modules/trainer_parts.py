"""Access to attributes that Lightning sets on its trainer without declaring them."""

from typing import Any

from lightning.pytorch import LightningModule


def data_of(module: LightningModule) -> Any:
    """Return the datamodule that a module runs with."""
    trainer: Any = module.trainer
    return trainer.datamodule


def is_dry_run(module: LightningModule) -> bool:
    """Tell whether the run is a trial of a few batches (`fast_dev_run`)."""
    trainer: Any = module.trainer
    return bool(trainer.fast_dev_run)
