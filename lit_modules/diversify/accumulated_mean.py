"""Accumulated micro-batches that train as one batch, whatever each of them counts.

A loss is a sum over rows or tokens divided by their number. Lightning averages the losses of the
micro-batches, and a mean of means is another number where they have different numbers of tokens,
or rows without a score. How many all have is known at the last one only. So each loss is divided by
the count of the first micro-batch, and the gradient is corrected before it is clipped and used.
"""

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import Optimizer

from triptych.objectives.diversify.policy_loss import LossSum


class AccumulatesExactly:
    """Mixin for LightningModules with a `LossSum` as their loss."""

    _first_count: Tensor | None = None
    _total_count: Tensor | None = None

    def mean_of_all(self, loss: LossSum) -> Tensor:
        """Return the loss to call backward on: the mean over all ranks and micro-batches."""
        assert isinstance(self, LightningModule)
        trainer, count = self.trainer, loss.count
        if trainer.world_size > 1:
            count = trainer.strategy.reduce(count.clone().double(), reduce_op="sum")
        if trainer.accumulate_grad_batches > 1:
            if self._first_count is None or self._total_count is None:
                self._first_count = count.double().clamp_min(1)
                self._total_count = torch.zeros_like(self._first_count)
            self._total_count = self._total_count + count
            count = self._first_count
        return loss.mean(count, int(trainer.world_size))

    @property
    def gradient_factor(self) -> Tensor | None:
        """What the accumulated gradient has to be multiplied by; None: by nothing."""
        assert isinstance(self, LightningModule)
        if self._first_count is None or self._total_count is None:
            return None
        count = self._first_count * self.trainer.accumulate_grad_batches
        return count / self._total_count.clamp_min(1)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Correct the accumulated gradient."""
        factor = self.gradient_factor
        if factor is None:
            return
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(factor.to(parameter.grad))
        self._first_count = self._total_count = None
