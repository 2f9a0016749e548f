"""Elastic weight consolidation: weights that mattered before are held where they were."""

import time
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from typing_extensions import override

from triptych.callbacks.remember.loss_terms import add_loss_term, sum_over_ranks
from triptych.callbacks.remember.replayed_batches import Batch, ReplayedBatches
from triptych.objectives.batch_nll import batch_nll
from triptych.objectives.language_modeling import IGNORED_LABEL

SECONDS_BETWEEN_LINES = 20.0
ROW_KEYS = ("input_ids", "position_ids", "segment_ids", "labels")


class ElasticWeightConsolidation(Callback):
    """Adds weight / 2 * sum_i F_i (theta_i - theta0_i)^2 to the loss.

    theta0 are the weights that the run starts from, and F is the diagonal of the empirical Fisher
    information at theta0, from rows of old data:

        F_i = mean over rows of (d log p(row) / d theta_i)^2

    log p(row) is the sum over the row's labelled tokens, as the data have them and not as the model
    would write them; without dropout. F is computed when a run begins, one backward a row, and is
    kept in checkpoints together with theta0: they grow by twice the size of the weights that learn.

    Frozen weights are left out. With LoRA that leaves the adapters: they are held where they
    started, by a Fisher information that knows only one of their two factors (the other has no
    gradient while that one is zero). EWC is meant for `trainable: all`, `memory` or `values`.

    Args:
        data: The old data, a datamodule of its own: `class_path` and `init_args`, as under `data`.
        weight: Lambda, the strength; 0 only measures. With sums over a row as above, values that
            make a difference are large where rows are short.
        num_rows: Rows for the Fisher information, over all processes.

    Raises:
        ValueError: if a number is out of range, the module does not add up loss terms, nothing
            learns by gradient, the strategy shards weights, or a checkpoint is of other weights.

    Logs `train/ewc_penalty_nats`, the weighted term.

    Source: Kirkpatrick et al. 2017, 1612.00796, equation 3. Deviation: the empirical Fisher
    information, of rows of a language model.
    """

    def __init__(self, data: LightningDataModule, weight: float = 1.0, num_rows: int = 256) -> None:
        if not 0 <= weight < float("inf"):
            raise ValueError(f"ElasticWeightConsolidation.weight is {weight}: set it to at least 0")
        if num_rows < 1:
            raise ValueError(
                f"ElasticWeightConsolidation.num_rows is {num_rows}: set it to at least 1"
            )
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
        if isinstance(trainer.strategy, FSDPStrategy):
            raise ValueError(
                "ElasticWeightConsolidation needs whole weights, but trainer.strategy shards "
                "them: use DDP (configs/hardware/ddp.yaml)"
            )
        add_loss_term(self, pl_module, self.loss_term)
        self._batches.setup(trainer, pl_module)

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        learning = _learning(pl_module)
        if not learning:
            raise ValueError(
                "ElasticWeightConsolidation holds weights that learn by the module's optimizer, "
                "and there are none (sparse memory finetuning freezes them all): set "
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
                "ElasticWeightConsolidation: the checkpoint holds other weights than those that "
                "learn in this run: resume with the settings of the checkpoint's config.yaml"
            )
        for tensors in (self.fisher, self.anchors):
            for name, parameter in learning.items():
                tensors[name] = tensors[name].to(parameter.device)

    def loss_term(self, pl_module: LightningModule, batch: Any) -> Tensor:
        """The penalty, the same on every rank."""
        learning = _learning(pl_module)
        terms = [
            (fisher * (learning[name] - self.anchors[name]).square()).sum()
            for name, fisher in self.fisher.items()
        ]
        penalty = self.weight / 2 * torch.stack(terms).sum()
        pl_module.log("train/ewc_penalty_nats", penalty.detach())
        return penalty

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"fisher": self.fisher, "anchors": self.anchors} if self.fisher else {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.fisher, self.anchors = dict(state_dict["fisher"]), dict(state_dict["anchors"])

    def _fisher(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Mean of squared gradients over rows, those of a process being every W-th."""
        model, learning = pl_module.model, _learning(pl_module)
        sums = {name: torch.zeros_like(p, dtype=_exact(p.dtype)) for name, p in learning.items()}
        training = model.training
        model.eval()
        rank_zero_info(f"EWC: Fisher information of {self.num_rows} rows")
        said = time.monotonic()
        for number, row in zip(range(self.num_rows), self._rows(), strict=False):
            if number % trainer.world_size == trainer.global_rank:
                nll = batch_nll(model, trainer.strategy.batch_to_device(row)).sum_nats
                # Not `backward`: what accumulates in `.grad` is watched by DDP.
                gradients = torch.autograd.grad(
                    nll, list(learning.values()), allow_unused=True, materialize_grads=True
                )
                for total, gradient in zip(sums.values(), gradients, strict=True):
                    total += gradient.to(total.dtype).square()
            if time.monotonic() - said > SECONDS_BETWEEN_LINES:
                said = time.monotonic()
                rank_zero_info(f"EWC: row {number + 1} of {self.num_rows}")
        model.train(training)
        return {name: sum_over_ranks(trainer, t) / self.num_rows for name, t in sums.items()}

    def _rows(self) -> Iterator[Batch]:
        """Rows of the data one by one, those without a label left out."""
        while True:
            batch = self._batches.next_of_all()
            for place in range(len(batch["labels"])):
                row = {key: batch[key][place : place + 1] for key in ROW_KEYS}
                if (row["labels"][:, 1:] != IGNORED_LABEL).any():
                    yield row


def _learning(pl_module: LightningModule) -> dict[str, nn.Parameter]:
    return {name: p for name, p in pl_module.model.named_parameters() if p.requires_grad}


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
