"""What Lightning sets on its trainer and does not declare."""

from typing import Any

from lightning.pytorch import LightningModule


def data_of(module: LightningModule) -> Any:
    """The datamodule that a module runs with."""
    trainer: Any = module.trainer
    return trainer.datamodule


def is_dry_run(module: LightningModule) -> bool:
    """Whether the run is one of few batches, to see that it goes through (`fast_dev_run`)."""
    trainer: Any = module.trainer
    return bool(trainer.fast_dev_run)
