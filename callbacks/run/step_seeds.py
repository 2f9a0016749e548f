"""Random numbers that depend on the step, and on nothing that came before it."""

import random
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override


class StepSeeds(Callback):
    """Seeds the generators before each micro-batch from the run's seed, its number and the rank.

    A checkpoint holds no state of a generator, and resuming draws numbers of its own (a loader
    takes one to seed its workers). This way dropout in a resumed run equals that of a run that was
    never stopped, and sampling during validation has no influence on training.
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
        # Words of 32 bits that are well mixed, also for seeds and steps that follow each other.
        mixed = np.random.SeedSequence([self._run_seed, number, trainer.global_rank])
        torch_seed, numpy_seed, python_seed = (int(word) for word in mixed.generate_state(3))
        torch.manual_seed(torch_seed)
        np.random.seed(numpy_seed)
        random.seed(python_seed)
