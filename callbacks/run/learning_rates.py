"""The learning rate of every parameter group, logged beside the metrics."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class LearningRates(Callback):
    """Logs ``lr/<name of the group>``, or ``lr/<number>`` for a group without a name.

    Lightning's monitor puts the optimizer's class into the name and refuses to run without a
    logger.
    """

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
        # Tensors of the host: loggers need not wait for the device to read them.
        rates = {
            f"lr/{group.get('name', i)}": torch.tensor(float(group["lr"]), dtype=torch.float32)
            for i, group in enumerate(groups)
        }
        pl_module.log_dict(rates)
