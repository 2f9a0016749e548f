"""Sparse memory finetuning: only the slots that belong to a batch learn."""

import shutil
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from jsonargparse.typing import NonNegativeFloat, PositiveFloat
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel
from typing_extensions import override

from triptych.callbacks.remember.read_protection import FILE as PROTECTED_READS_FILE
from triptych.callbacks.remember.read_protection import ReadProtection
from triptych.callbacks.remember.row_updates import RowObserver, RowUpdates
from triptych.callbacks.remember.training_reads import TrainingReads
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.host_to_device import number_on
from triptych.models.remember.memory_blocks import memory_layers, value_tables
from triptych.models.remember.repeated_input import RememberedCall, remember_repeated_input
from triptych.models.remember.values.row_optimizers import (
    RowOptimizer,
    RowOptimizerName,
    build_row_optimizer,
)
from triptych.models.remember.values.value_table import RowGradient, ValueTable
from triptych.objectives.remember.background_statistics import (
    BACKGROUND_FILE,
    COLLECT_ANEW,
    BackgroundStatistics,
)
from triptych.objectives.remember.row_selection import RowSelection, Scope
from triptych.objectives.remember.slot_scores import Ranking, TableStatistics
from triptych.protocols import HasTokenizer, StartsFrom

# Shapes: S slots, U selected rows, D value width

ANCHOR = "sparse_memory_anchor"
LearningRateScale = Literal["absolute", "relative"]
# Scales of models whose values have an effect are between a hundredth and some hundreds.
_LARGEST_SCALE = 1e12


class SparseMemoryFinetuning(Callback):
    """Freezes the module and lets the best-scored slots of each step learn.

    For every optimizer step (the accumulated batch of all ranks):

    1. count how often each slot was read, at positions that are not padding;
    2. score the slots, by default by TF-IDF against other text, and select the best rows;
    3. form the gradient of these rows alone, and update these rows alone.

    No gradient, mask or optimizer state is as large as a table. There is no backward pass below the
    lowest memory layer, and the output of the frozen part below it is reused for repeated batches
    (`repeated_input`); that part runs in eval mode, so without dropout. Rows that were not selected
    keep every bit, whatever the optimizer.

    It works in any LightningModule with memory layers. All of the module's parameters are frozen.
    The module's own optimizer, and the reduction over processes, get a scalar with zero gradient:
    `sparse_memory_anchor`.

    Args:
        num_slots: t, the number of rows that learn from a step.
        score_share: Instead of `num_slots`: the fewest rows that hold this share of the score.
        ranking: `tfidf` (the paper's), `tf`, `kl`, or `all` slots that were read.
        idf_exponent: Power of the inverse document frequency. A value above the paper's 1 avoids
            slots that other text reads more strongly.
        scope: `per_table`: t rows in each value table; reads of layers that share a table are
            added. `pooled`: t rows of all tables together.
        background: File of background statistics, or its folder; null: the folder from which the
            module was loaded (its `init_from`).
        optimizer: `sgd` (the paper's), `adagrad` or `adamw`, on rows.
        learning_rate: Step size of the optimizer. The paper's are 2 and 5, for SGD; for AdamW try
            0.01 to 0.1.
        learning_rate_scale: `absolute`: the values move by the step size. `relative`: it is
            multiplied by the table's value scale (`ValueScales`, in the background statistics; its
            square for SGD), so that a step of 0.1 moves what the memory adds by at most a tenth of
            the FFN's output. One rate then suits models of all sizes, healed or not.
        weight_decay: Weight decay of rows, in the steps that select them.
        betas: Betas of AdamW.
        momentum: Momentum of SGD.
        protection: Strength with which the outputs for earlier facts are kept, if data come fact by
            fact (`FactStream`); 0: not at all. Later facts would otherwise overwrite rows that they
            share; 10 keeps nearly all. See `ProtectedReads`. The reads are exported with the model,
            so that later runs protect them too.
        gradient_clip_norm: Largest norm of the gradient of all selected rows together; null: no
            clipping. (`trainer.gradient_clip_val` does not act on this gradient.)

    Attributes:
        observers: Called at every update; append to this list.

    Raises:
        ValueError: if settings contradict each other, the module has no memory layers, statistics
            are missing or of another model, the strategy shards parameters, or the first step reads
            fewer slots than `num_slots`.

    Logs for each step, over all tables: `sparse_memory/slots_read` (distinct slots read),
    `sparse_memory/rows_per_step`, `sparse_memory/gradient_norm` (of these rows), and
    `sparse_memory/rows_written` (distinct rows since the run began).

    Source: 2510.15103, section 4. Deviations: the paper masks a dense gradient, with the same
    result; `RowSelection` and `slot_scores` list the others.
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
        gradient_clip_norm: PositiveFloat | None = None,
        learning_rate_scale: LearningRateScale = "absolute",
        protection: NonNegativeFloat = 0.0,
    ) -> None:
        if learning_rate_scale not in get_args(LearningRateScale):
            raise ValueError(
                f"SparseMemoryFinetuning.learning_rate_scale is {learning_rate_scale!r}: choose "
                "absolute or relative"
            )
        self.learning_rate_scale = learning_rate_scale
        self.protection = protection
        self.selection = RowSelection(num_slots, score_share, ranking, idf_exponent, scope)
        self.background = background
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.momentum = momentum
        self.gradient_clip_norm = gradient_clip_norm
        self._row_optimizer()  # refuses wrong settings before anything is loaded
        self.observers: list[RowObserver] = []
        self._tables: list[ValueTable] = []
        self._reads = TrainingReads([])
        self._updates = RowUpdates([], self._row_optimizer, self.observers)
        self._statistics: list[TableStatistics] | None = None
        self._statistics_file: Path | None = None
        self._earlier_reads: Path | None = None
        self._remembered: list[RememberedCall] = []
        self._batch: Any = None
        self._has_warned = False

    @property
    def num_updates(self) -> int:
        """Number of steps that updated rows since the run began."""
        return self._updates.num_updates

    @property
    def rows_written(self) -> list[Tensor]:
        """Distinct rows updated since the run began, for each table: int64, ascending."""
        return self._updates.rows_written

    # -- before the run ---------------------------------------------------------------------------

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_sharded(trainer, "SparseMemoryFinetuning updates whole rows on every process")
        if stage != "fit":  # nothing learns, but a checkpoint of training holds the anchor
            if not hasattr(pl_module, ANCHOR):
                pl_module.register_parameter(ANCHOR, nn.Parameter(torch.zeros(())))
            return
        self._tables = value_tables(pl_module)
        if not memory_layers(pl_module) or not self._tables:
            raise ValueError(
                f"SparseMemoryFinetuning: {type(pl_module).__name__} has no memory layers to "
                "finetune. Start from a model with memory (configs/remember/pretrain.yaml trains "
                "one; name it in model.init_args.init_from), or insert memory with `memory`"
            )
        if hasattr(pl_module, ANCHOR):  # from an earlier run of the same module
            delattr(pl_module, ANCHOR)
        if self.protection and trainer.accumulate_grad_batches != 1:
            raise ValueError(
                "SparseMemoryFinetuning.protection takes the reads of whole visits, but "
                f"trainer.accumulate_grad_batches is {trainer.accumulate_grad_batches}: set one of "
                "them to its default"
            )
        self._statistics_file = self._find_statistics(pl_module)
        rates = [self.learning_rate] * len(self._tables)
        if self.selection.needs_background or self.learning_rate_scale == "relative":
            background = self._load_statistics(trainer, pl_module)
            self._statistics = list(background.tables)
            if self.learning_rate_scale == "relative":
                rates = self._relative_rates(background)
        pl_module.requires_grad_(False)
        anchor = nn.Parameter(torch.zeros((), device=self._tables[0].weight.device))
        pl_module.register_parameter(ANCHOR, anchor)
        for table in self._tables:
            table.set_gradient("selected_rows")
            table.set_anchor(anchor)
        self._reads = TrainingReads(self._tables)
        self._updates = RowUpdates(
            self._tables, self._row_optimizer, self.observers, rates, self._protection(pl_module)
        )

    def _protection(self, pl_module: LightningModule) -> ReadProtection | None:
        if isinstance(pl_module, StartsFrom) and pl_module.init_from is not None:
            path = Path(pl_module.init_from) / PROTECTED_READS_FILE
            self._earlier_reads = path if path.is_file() else None
        if not self.protection:
            return None
        protection = ReadProtection(self._tables, self.protection)
        if self._earlier_reads is not None:
            protection.load(self._earlier_reads)
        return protection

    def _relative_rates(self, background: BackgroundStatistics) -> list[float]:
        """Return each table's rate. The gradient grows with the scale too, so SGD squares it."""
        if background.value_scales is None:
            raise ValueError(
                "SparseMemoryFinetuning.learning_rate_scale is relative, but the background "
                f"statistics are older than this setting and have no value scales: {COLLECT_ANEW}, "
                "or set it to absolute"
            )
        if max(background.value_scales) > _LARGEST_SCALE:
            raise ValueError(
                "SparseMemoryFinetuning.learning_rate_scale is relative, but values have no effect "
                "on the model: the memory's gate is closed. Heal it "
                "(configs/remember/retrofit.yaml), or insert it with memory.start: zero_values"
            )
        power = 2 if self.optimizer == "sgd" else 1
        return [self.learning_rate * scale**power for scale in background.value_scales]

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

    def add_to_export(self, folder: Path) -> None:
        """Add the background statistics, which are those of the base, and the protected reads."""
        if self._statistics_file is not None and self._statistics_file.is_file():
            shutil.copyfile(self._statistics_file, folder / BACKGROUND_FILE)
        if self._updates.protection is not None:
            self._updates.protection.save(folder / PROTECTED_READS_FILE)
        elif self._earlier_reads is not None:  # for later runs that protect
            shutil.copyfile(self._earlier_reads, folder / PROTECTED_READS_FILE)

    def _find_statistics(self, pl_module: LightningModule) -> Path | None:
        source = self.background
        if source is None and isinstance(pl_module, StartsFrom):
            source = pl_module.init_from
        if source is None:
            return None
        return Path(source) / BACKGROUND_FILE if Path(source).is_dir() else Path(source)

    def _load_statistics(
        self, trainer: Trainer, pl_module: LightningModule
    ) -> BackgroundStatistics:
        path = self._statistics_file
        if path is None:
            raise ValueError(
                f"SparseMemoryFinetuning.background: ranking {self.selection.ranking} compares the "
                "reads of a batch with those of other text, and relative rates are measured on it. "
                "Name a file of background statistics (configs/remember/background_statistics.yaml "
                "collects them), or set ranking: tf and learning_rate_scale: absolute"
            )
        try:
            statistics = BackgroundStatistics.load(path)
            data = datamodule_of(trainer)
            tokenizer = data.tokenizer if isinstance(data, HasTokenizer) else None
            statistics.check(_model_with_memory(pl_module), tokenizer)
        except (FileNotFoundError, ValueError) as error:
            raise ValueError(f"SparseMemoryFinetuning.background: {error}") from error
        if len(statistics.tables) != len(self._tables):
            raise ValueError(
                f"SparseMemoryFinetuning.background: {path} describes {len(statistics.tables)} "
                f"value tables, but {type(pl_module).__name__} has {len(self._tables)}: collect "
                "statistics of the whole module, remove its other models with memory, or set "
                "ranking: tf"
            )
        return statistics

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
        counts = [sum_over_ranks(trainer, counts_S) for counts_S in self._reads.counts()]
        num_read = torch.stack([counts_S.count_nonzero() for counts_S in counts]).tolist()
        if any(num_read):
            selected = self._select(counts, num_read)
            gradients = [
                table.row_gradient(rows_U)
                for table, rows_U in zip(self._tables, selected, strict=True)
            ]
            norm = self._finish(trainer, gradients, getattr(pl_module, "gradient_factor", None))
            if self._updates.protection is not None:
                self._updates.protection.note(trainer, self._batch)
            if self._is_finite(trainer, anchor, norm):
                self._updates.apply(gradients)
            self._log(pl_module, num_read, gradients, norm)
        self._reads.clear()

    def _select(self, counts: list[Tensor], num_read: list[int]) -> list[Tensor]:
        """Select the rows that learn from this step; counts and rows agree on all ranks."""
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

    def _finish(
        self, trainer: Trainer, gradients: list[RowGradient], factor: Tensor | None
    ) -> Tensor:
        """Average gradients over ranks, unscale and clip them in place; return their norm.

        `factor` corrects the mean of accumulated micro-batches: see `AccumulatesExactly`.
        """
        scaler = _scaler(trainer)
        for gradient in gradients:
            if gradient.rows_U.numel():
                total_UD = sum_over_ranks(trainer, gradient.grad_UD)
                gradient.grad_UD.copy_(total_UD / trainer.world_size)
            if scaler is not None:
                gradient.grad_UD.div_(scaler.get_scale())
            if factor is not None:
                gradient.grad_UD.mul_(factor.to(gradient.grad_UD))
        norms = [torch.linalg.vector_norm(gradient.grad_UD).double() for gradient in gradients]
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if self.gradient_clip_norm is not None:
            limit = self.gradient_clip_norm
            factor = torch.where(norm > limit, limit / norm, 1.0)  # without asking the device
            for gradient in gradients:
                gradient.grad_UD.mul_(factor)
        return norm

    def _is_finite(self, trainer: Trainer, anchor: Tensor, norm: Tensor) -> bool:
        """Return whether to take this step, equal on all ranks since both numbers are reduced."""
        finite = torch.isfinite(norm)
        if anchor.grad is not None:
            finite = finite & torch.isfinite(anchor.grad)
        if finite:
            return True
        if _scaler(trainer) is None:  # a scaler skips the step by itself
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
        values: dict[str, Any] = {
            "sparse_memory/slots_read": sum(num_read),
            "sparse_memory/rows_per_step": sum(len(gradient.rows_U) for gradient in gradients),
            "sparse_memory/rows_written": sum(map(len, self.rows_written)),
            "sparse_memory/gradient_norm": norm,
        }
        device = pl_module.device
        pl_module.log_dict(
            {
                name: value.float() if isinstance(value, Tensor) else number_on(device, value)
                for name, value in values.items()
            }
        )

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
        if not self._tables:  # a checkpoint is validated, not resumed
            return
        try:
            self._updates.load_state_dict(state_dict)
        except ValueError as error:
            raise ValueError(f"SparseMemoryFinetuning, from the checkpoint: {error}") from error


def _model_with_memory(pl_module: LightningModule) -> nn.Module:
    """Return the transformers model with memory, else the module: its statistics are collected."""
    models = [module for module in pl_module.modules() if isinstance(module, PreTrainedModel)]
    return next((model for model in models if value_tables(model)), pl_module)


def _scaler(trainer: Trainer) -> Any:
    """Return the gradient scaler of mixed precision, if there is one."""
    plugin = trainer.precision_plugin
    return plugin.scaler if isinstance(plugin, MixedPrecision) else None


def _steps(optimizer: Optimizer, anchor: Tensor, trainer: Trainer) -> bool:
    """Return whether rows are updated with this optimizer's step: it holds the anchor."""

    def holds(other: Any) -> bool:
        return any(p is anchor for group in other.param_groups for p in group["params"])

    return holds(optimizer) or not any(holds(other) for other in trainer.optimizers)
