"""Random draws that follow from the number of the batch, so that a resumed run draws the same."""

import os
import random
from typing import Any

import torch
from lightning.pytorch import LightningModule

from triptych.models.seeded_generator import seeded_generator


class DrawsByStep(LightningModule):
    """Seeds the global generators before each training batch: by the run's seed, rank and batch.

    Checkpoints hold no state of generators. What a step draws (noise, budgets of messages, sampled
    replies) would else depend on everything that was drawn in its process before.
    """

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Seed `random` and torch."""
        seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))
        number = self.trainer.fit_loop.epoch_loop.total_batch_idx
        rank = self.trainer.global_rank
        drawn = seeded_generator(torch.device("cpu"), seed, rank, number).initial_seed()
        random.seed(drawn)
        torch.manual_seed(drawn)
