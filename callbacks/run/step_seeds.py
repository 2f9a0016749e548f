"""Random numbers that depend on the step alone, not on earlier draws."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class StepSeeds(Callback):
    """Seeds the generators before each micro-batch from the run's seed, batch number and rank.

    A checkpoint holds no generator state, and resuming draws further numbers (a loader draws one to
    seed its workers). With these seeds, dropout in a resumed run equals that of an uninterrupted
    run, and sampling during validation does not influence training.
    """

    def __init__(self) -> None:
        self._run_seed = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._run_seed = torch.initial_seed()

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        number = trainer.fit_loop.total_batch_idx
        # 32-bit words that are well mixed, also for consecutive seeds and steps.
        mixed = np.random.SeedSequence([self._run_seed, number, trainer.global_rank])
        torch_seed, numpy_seed, python_seed = (int(word) for word in mixed.generate_state(3))
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        random.seed(python_seed)
