"""Elastic weight consolidation: a penalty that keeps weights which mattered for old data."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveInt
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from triptych.callbacks.remember.language_model import language_model_of
from triptych.callbacks.remember.loss_terms import add_loss_term
from triptych.callbacks.remember.replayed_batches import Batch, ReplayedBatches
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.objectives.batch_nll import batch_nll
from triptych.objectives.language_modeling import IGNORED_LABEL

SECONDS_BETWEEN_LINES = 20.0
ROW_KEYS = ("input_ids", "position_ids", "segment_ids", "labels")


class ElasticWeightConsolidation(Callback):
    """Adds weight / 2 * sum_i F_i (theta_i - theta0_i)^2 to the loss.

    theta0 are the initial weights of the run. F is the diagonal of the empirical Fisher information
    at theta0, from rows of old data:

        F_i = mean over rows of (d log p(row) / d theta_i)^2

    log p(row) is the sum over the row's labelled tokens, as they stand in the data rather than
    sampled from the model, and without dropout. F is computed when a run begins, with one backward
    pass per row. Checkpoints keep F and theta0, so they grow by twice the size of the trainable
    weights.

    Frozen weights are left out. With LoRA only the adapters remain. One of their two factors starts
    at zero, so the other has no gradient and no Fisher information. EWC is meant for
    `trainable: all`, `memory` or `values`.

    Args:
        data: The old data, a separate datamodule: `class_path` and `init_args`, as under `data`.
        weight: Lambda, the strength; 0 only measures. Log p is summed over a row, so short rows
            need a large value.
        num_rows: Rows for the Fisher information, over all processes.

    Raises:
        ValueError: if the module does not add loss terms, nothing learns by gradient, the strategy
            shards weights, or a checkpoint holds other weights.

    Logs `train/ewc_penalty_nats`, the weighted term.

    Source: Kirkpatrick et al. 2017, 1612.00796, equation 3. Deviation: the empirical Fisher
    information, of rows of a language model.
    """

    def __init__(
        self,
        data: LightningDataModule,
        weight: NonNegativeFloat = 1.0,
        num_rows: PositiveInt = 256,
    ) -> None:
        self.data = data
        self.weight = weight
        self.num_rows = num_rows
        self._batches = ReplayedBatches(data, "ElasticWeightConsolidation")
        self.fisher: dict[str, Tensor] = {}
        self.anchors: dict[str, Tensor] = {}

    @property
    @override
    def state_key(self) -> str:
        return "ElasticWeightConsolidation"

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage != "fit":
            return
        refuse_sharded(trainer, "ElasticWeightConsolidation needs whole weights")
        add_loss_term(self, pl_module, self.loss_term)
        self._batches.setup(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learning = _learning(pl_module)
        if not learning:
            raise ValueError(
                "ElasticWeightConsolidation penalises weights that learn by the module's "
                "optimizer, but there are none (sparse memory finetuning freezes all): set "
                "model.init_args.trainable to all, memory or values, or leave one of the two "
                "callbacks out"
            )
        if not self.fisher:
            self.anchors = {name: p.detach().clone() for name, p in learning.items()}
            self.fisher = self._fisher(trainer, pl_module)
        if {n: t.shape for n, t in self.fisher.items()} != {
            n: p.shape for n, p in learning.items()
        }:
            raise ValueError(
                "ElasticWeightConsolidation: the checkpoint holds other weights than this run "
                "trains: resume with the settings of the checkpoint's config.yaml"
            )
        for tensors in (self.fisher, self.anchors):
            for name, parameter in learning.items():
                tensors[name] = tensors[name].to(parameter.device)

    def loss_term(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """Return the penalty, equal on every rank."""
        learning = _learning(pl_module)
        terms = [
            (fisher * (learning[name] - self.anchors[name]).square()).sum()
            for name, fisher in self.fisher.items()
        ]
        penalty: Tensor = self.weight / 2 * torch.stack(terms).sum()
        pl_module.log("train/ewc_penalty_nats", penalty.detach())
        return penalty

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchors": self.anchors} if self.fisher else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fisher, self.anchors = dict(state_dict["fisher"]), dict(state_dict["anchors"])

    def _fisher(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Average squared gradients over rows; each of W processes takes every W-th row."""
        model = language_model_of(pl_module, "ElasticWeightConsolidation")
        learning = _learning(pl_module)
        sums = {name: torch.zeros_like(p, dtype=_exact(p.dtype)) for name, p in learning.items()}
        training = model.training
        model.train(False)
        rank_zero_info(f"EWC: Fisher information of {self.num_rows} rows")
        last_line_at = time.monotonic()
        for number, row in zip(range(self.num_rows), self._rows(), strict=False):
            if number % trainer.world_size == trainer.global_rank:
                nll = batch_nll(model, trainer.strategy.batch_to_device(row)).sum_nats
                # Not `backward`: DDP hooks into the accumulation in `.grad`.
                gradients = torch.autograd.grad(
                    nll, list(learning.values()), allow_unused=True, materialize_grads=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total += gradient.to(total.dtype).square()
            if time.monotonic() - last_line_at > SECONDS_BETWEEN_LINES:
                last_line_at = time.monotonic()
                rank_zero_info(f"EWC: row {number + 1} of {self.num_rows}")
        model.train(training)
        return {name: sum_over_ranks(trainer, t) / self.num_rows for name, t in sums.items()}

    def _rows(self) -> Iterator[Batch]:
        """Yield the rows of the data one by one, except for those without a label."""
        while True:
            batch = self._batches.next_of_all()
            for place in range(len(batch["labels"])):
                row = {key: batch[key][place : place + 1] for key in ROW_KEYS}
                if (row["labels"][:, 1:] != IGNORED_LABEL).any():
                    yield row


def _learning(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    model = language_model_of(pl_module, "ElasticWeightConsolidation")
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
