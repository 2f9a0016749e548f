"""Sparse memory finetuning: of a whole model, only the slots that belong to a batch learn."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from typing_extensions import override

from triptych.callbacks.remember.row_updates import RowObserver, RowUpdates
from triptych.callbacks.remember.training_reads import TrainingReads
from triptych.models.remember.memory_blocks import memory_layers, value_tables
from triptych.models.remember.repeated_input import RememberedCall, remember_repeated_input
from triptych.models.remember.values.row_optimizers import (
    RowOptimizer,
    RowOptimizerName,
    build_row_optimizer,
)
from triptych.models.remember.values.value_table import RowGradient, ValueTable
from triptych.objectives.remember.background_statistics import BACKGROUND_FILE, BackgroundStatistics
from triptych.objectives.remember.row_selection import RowSelection, Scope
from triptych.objectives.remember.slot_scores import Ranking, TableStatistics

# Shapes: S slots, U selected rows, D value width

ANCHOR = "sparse_memory_anchor"
SHARDED = (FSDPStrategy, ModelParallelStrategy, DeepSpeedStrategy)


class SparseMemoryFinetuning(Callback):
    """Freezes the module and lets the best-scored slots of each step learn.

    For every optimizer step (the accumulated batch of all ranks):

    1. count how often each slot was read, at positions that are not padding;
    2. score the slots, by default by TF-IDF against other text, and select the best;
    3. form the gradient of these rows alone, and update these rows alone.

    There is no gradient, mask or optimizer state as large as a table, and nothing is computed below
    the lowest memory layer that needs no gradient; nor is what comes out of the frozen part below
    it computed again for a batch that comes again (`repeated_input`). Rows that were not
    selected stay as they are to the bit, whatever the optimizer.

    It works in any LightningModule with memory layers. All of its parameters are frozen; what is
    left for the module's own optimizer, or for several processes to reduce, is a scalar whose
    gradient is zero: `sparse_memory_anchor`.

    Args:
        num_slots: t, the rows that learn from a step.
        score_share: In place of `num_slots`: the fewest rows that hold this share of the score.
        ranking: `tfidf` (the paper's), `tf`, `kl`, or `all` slots that were read.
        idf_exponent: Power of the inverse document frequency; more than the paper's 1 keeps further
            away from slots that other text reads.
        scope: `per_table`: t rows in each value table, so in each layer that has one of its own;
            reads of layers that share a table are added up. `pooled`: t rows of all tables.
        background: File of background statistics, or its folder; null: that in the folder which
            the module was loaded from (its `init_from`).
        optimizer: `sgd` (the paper's), `adagrad` or `adamw`, on rows.
        learning_rate: Its step size. The paper's are 2 and 5, for SGD; for AdamW try 0.01
            to 0.1.
        weight_decay: Of rows, in the steps that select them.
        betas: AdamW's.
        momentum: SGD's.
        gradient_clip_norm: Longest gradient of all selected rows together; null: not clipped.
            (`trainer.gradient_clip_val` does not see it.)

    Attributes:
        observers: Told of every update; append to this list.

    Raises:
        ValueError: if settings contradict each other, the module has no memory layers, statistics
            are missing or another model's, the strategy shards parameters, or the first step reads
            fewer slots than `num_slots`.

    Logs for each step, over all tables: `sparse_memory/slots_read` (distinct slots that were read),
    `sparse_memory/rows_per_step`, `sparse_memory/gradient_norm` (of these rows), and
    `sparse_memory/rows_written` (distinct rows since the run began).

    Source: 2510.15103, section 4. Deviations: the paper masks a dense gradient, with the same
    result; what else differs is said in `RowSelection` and `slot_scores`.
    """

    def __init__(
        self,
        num_slots: int | None = 500,
        score_share: float | None = None,
        ranking: Ranking = "tfidf",
        idf_exponent: float = 1.0,
        scope: Scope = "per_table",
        background: str | None = None,
        optimizer: RowOptimizerName = "sgd",
        learning_rate: float = 2.0,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        momentum: float = 0.0,
        gradient_clip_norm: float | None = None,
    ) -> None:
        if gradient_clip_norm is not None and not 0 < gradient_clip_norm < float("inf"):
            raise ValueError(
                f"gradient_clip_norm is {gradient_clip_norm}: set it above 0, or to null"
            )
        self.selection = RowSelection(num_slots, score_share, ranking, idf_exponent, scope)
        self.background = background
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.momentum = momentum
        self.gradient_clip_norm = gradient_clip_norm
        self._row_optimizer()  # refuses what cannot work before anything is loaded
        self.observers: list[RowObserver] = []
        self._tables: list[ValueTable] = []
        self._reads = TrainingReads([])
        self._updates = RowUpdates([], self._row_optimizer, self.observers)
        self._statistics: list[TableStatistics] | None = None
        self._remembered: list[RememberedCall] = []
        self._batch: Any = None
        self._has_warned = False

    @property
    def num_updates(self) -> int:
        """Steps that updated rows since the run began."""
        return self._updates.num_updates

    @property
    def rows_written(self) -> list[Tensor]:
        """Distinct rows updated since the run began, for each table: int64, ascending."""
        return self._updates.rows_written

    # -- before the run ---------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if isinstance(trainer.strategy, SHARDED):
            raise ValueError(
                "SparseMemoryFinetuning updates whole rows on every process, but "
                f"{type(trainer.strategy).__name__} shards them: use DDP "
                "(configs/hardware/ddp.yaml)"
            )
        if stage != "fit":  # nothing learns; but a checkpoint of such a run has the anchor
            if not hasattr(pl_module, ANCHOR):
                pl_module.register_parameter(ANCHOR, nn.Parameter(torch.zeros(())))
            return
        self._tables = value_tables(pl_module)
        if not memory_layers(pl_module) or not self._tables:
            raise ValueError(
                f"SparseMemoryFinetuning: {type(pl_module).__name__} has no memory layers to "
                "finetune. Start from a model that has (configs/remember/pretrain.yaml trains one; "
                "model.init_args.init_from takes it), or put memory into this one (`memory`)"
            )
        if hasattr(pl_module, ANCHOR):  # of an earlier run of the same module
            delattr(pl_module, ANCHOR)
        if self.selection.needs_background:
            self._statistics = self._load_statistics(trainer, pl_module)
        pl_module.requires_grad_(False)
        anchor = nn.Parameter(torch.zeros((), device=self._tables[0].weight.device))
        pl_module.register_parameter(ANCHOR, anchor)
        for table in self._tables:
            table.set_gradient("selected_rows")
            table.set_anchor(anchor)
        self._reads = TrainingReads(self._tables)
        self._updates = RowUpdates(self._tables, self._row_optimizer, self.observers)

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reads.clear()
        model = _model_with_memory(pl_module)
        if isinstance(model, PreTrainedModel):
            self._remembered = remember_repeated_input(model)
        if self._statistics is not None:
            self._statistics = [
                statistics.to(table.weight.device)
                for statistics, table in zip(self._statistics, self._tables, strict=True)
            ]

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._forget()

    @override
    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self._forget()  # Lightning calls no `teardown` then

    def _forget(self) -> None:
        for call in self._remembered:
            call.remove()
        self._remembered = []

    def _load_statistics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> list[TableStatistics]:
        ranking, folder = self.selection.ranking, getattr(pl_module, "init_from", None)
        path = self.background or folder
        if path is None:
            raise ValueError(
                f"SparseMemoryFinetuning.background: ranking {ranking} holds the reads of a batch "
                "against those of other text. Name a file of background statistics "
                "(configs/remember/background_statistics.yaml collects them), or set ranking: tf"
            )
        path = Path(path) / BACKGROUND_FILE if Path(path).is_dir() else Path(path)
        try:
            statistics = BackgroundStatistics.load(path)
            tokenizer = getattr(trainer.datamodule, "tokenizer", None)
            statistics.check(_model_with_memory(pl_module), tokenizer)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"SparseMemoryFinetuning.background: {error}") from error
        if len(statistics.tables) != len(self._tables):
            raise ValueError(
                f"SparseMemoryFinetuning.background: {path} is of {len(statistics.tables)} value "
                f"tables, but {type(pl_module).__name__} has {len(self._tables)}: collect them of "
                "the whole module, keep other models with memory out of it, or set ranking: tf"
            )
        return list(statistics.tables)

    def _row_optimizer(self) -> RowOptimizer:
        return build_row_optimizer(
            self.optimizer, self.learning_rate, self.weight_decay, self.betas, self.momentum
        )

    # -- a step -----------------------------------------------------------------------------------

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._batch = batch

    @override
    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._reads.note(self._batch)

    @override
    @torch.no_grad()
    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer
    ) -> None:
        anchor = pl_module.get_parameter(ANCHOR)
        if not _steps(optimizer, anchor, trainer):
            return
        self._reads.note(self._batch)
        counts = [_sum_over_ranks(counts_S, trainer) for counts_S in self._reads.counts()]
        num_read = [int(counts_S.count_nonzero()) for counts_S in counts]
        if any(num_read):
            selected = self._select(counts, num_read)
            gradients = [
                table.row_gradient(rows_U)
                for table, rows_U in zip(self._tables, selected, strict=True)
            ]
            norm = self._finish(trainer, gradients)
            if self._is_finite(trainer, anchor, norm):
                self._updates.apply(gradients)
            self._log(pl_module, num_read, gradients, norm)
        self._reads.clear()

    def _select(self, counts: list[Tensor], num_read: list[int]) -> list[Tensor]:
        """The rows that learn from this step; the counts, and so the rows, agree on all ranks."""
        wanted, pooled = self.selection.num_slots, self.selection.scope == "pooled"
        found = sum(num_read) if pooled else min(number for number in num_read if number)
        if self.num_updates == 0 and wanted is not None and wanted > found:
            raise ValueError(
                f"SparseMemoryFinetuning.num_slots is {wanted}, but the first step read only "
                f"{found} different slots: set it to at most {found}, better to a small part of "
                "that, or let a step read more (larger batches, more heads, a higher top_k)"
            )
        selected = self.selection.select(counts, self._statistics)
        taken = [len(rows) for rows, number in zip(selected, num_read, strict=True) if number]
        fewest = sum(taken) if pooled else min(taken)
        if wanted is not None and fewest < wanted and not self._has_warned:
            self._has_warned = True
            rank_zero_warn(
                f"a step selected {fewest} rows and not num_slots={wanted}: it read no more slots "
                "that score above 0. Further steps like this are not reported"
            )
        return selected

    def _finish(self, trainer: Trainer, gradients: list[RowGradient]) -> Tensor:
        """Average gradients over ranks, unscale and clip them in place; returns their norm."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        for gradient in gradients:
            if gradient.rows_U.numel():
                _sum_over_ranks(gradient.grad_UD, trainer).div_(trainer.world_size)
            if scaler is not None:
                gradient.grad_UD.div_(scaler.get_scale())
        norm = torch.stack([gradient.grad_UD.norm().double() for gradient in gradients]).norm()
        if self.gradient_clip_norm is not None and norm > self.gradient_clip_norm:
            for gradient in gradients:
                gradient.grad_UD.mul_(self.gradient_clip_norm / norm)
        return norm

    def _is_finite(self, trainer: Trainer, anchor: Tensor, norm: Tensor) -> bool:
        """Whether to take this step; the same on all ranks, since both numbers are reduced."""
        finite = torch.isfinite(norm)
        if anchor.grad is not None:
            finite = finite & torch.isfinite(anchor.grad)
        if finite:
            return True
        if getattr(trainer.precision_plugin, "scaler", None) is None:  # a scaler skips it, as usual
            if anchor.grad is not None:
                anchor.grad.zero_()
            rank_zero_warn(
                f"the gradient of the slots is not finite at step {trainer.global_step}: no row "
                "was changed. A smaller learning rate or gradient_clip_norm usually helps"
            )
        return False

    def _log(
        self,
        pl_module: LightningModule,
        num_read: list[int],
        gradients: list[RowGradient],
        norm: Tensor,
    ) -> None:
        values = {
            "sparse_memory/slots_read": sum(num_read),
            "sparse_memory/rows_per_step": sum(len(gradient.rows_U) for gradient in gradients),
            "sparse_memory/rows_written": sum(map(len, self.rows_written)),
            "sparse_memory/gradient_norm": norm,
        }
        pl_module.log_dict({name: float(value) for name, value in values.items()})

    # -- checkpoints ------------------------------------------------------------------------------

    @property
    @override
    def state_key(self) -> str:
        return "SparseMemoryFinetuning"

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._updates.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self._tables:  # a checkpoint is validated: nothing goes on
            return
        try:
            self._updates.load_state_dict(state_dict)
        except ValueError as error:
            raise ValueError(f"SparseMemoryFinetuning, from the checkpoint: {error}") from error


def _model_with_memory(pl_module: LightningModule) -> nn.Module:
    """What statistics are collected of: the transformers model with memory, if there is one."""
    models = [module for module in pl_module.modules() if isinstance(module, PreTrainedModel)]
    return next((model for model in models if value_tables(model)), pl_module)


def _sum_over_ranks(value: Tensor, trainer: Trainer) -> Tensor:
    """Add up in place; without the barrier that the strategy's own `reduce` puts before it."""
    if trainer.world_size > 1:
        torch.distributed.all_reduce(value)
    return value


def _steps(optimizer: Optimizer, anchor: Tensor, trainer: Trainer) -> bool:
    """Whether this optimizer's step is the one that rows go along with: the one with the anchor."""

    def holds(other: Any) -> bool:
        return any(p is anchor for group in other.param_groups for p in group["params"])

    return holds(optimizer) or not any(holds(other) for other in trainer.optimizers)
