"""Parameter groups, learning-rate schedule and clipping for language models with memory."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from triptych.models.remember.memory_blocks import value_tables


def value_parameters(model: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of every value table, once each."""
    return [table.weight for table in value_tables(model)]


def build_adamw(
    model: nn.Module,
    learning_rate: float,
    value_learning_rate: float,
    weight_decay: float,
    value_weight_decay: float,
    betas: tuple[float, float],
) -> AdamW:
    """Build AdamW over `parameter_groups`."""
    rates = (learning_rate, value_learning_rate, weight_decay, value_weight_decay)
    return AdamW(parameter_groups(model, *rates), betas=betas, fused=True)


def parameter_groups(
    model: nn.Module,
    learning_rate: float,
    value_learning_rate: float,
    weight_decay: float,
    value_weight_decay: float,
) -> list[dict[str, Any]]:
    """Return an optimizer's groups, with the memory's values in a separate group.

    The groups are `decay` (matrices), `no_decay` (norms, biases, gates) and `values`, in this
    order and without empty ones. The papers give values a higher learning rate than the rest (1e-3
    against 1e-4 in facebookresearch/memory): few tokens read a slot, so it gets few gradients.
    """
    values = {id(parameter) for parameter in value_parameters(model)}
    groups: dict[str, list[nn.Parameter]] = {"decay": [], "no_decay": [], "values": []}
    for parameter in model.parameters():
        if not parameter.requires_grad:
            continue
        kind = "decay" if parameter.ndim >= 2 else "no_decay"
        groups["values" if id(parameter) in values else kind].append(parameter)
    settings = {
        "decay": {"lr": learning_rate, "weight_decay": weight_decay},
        "no_decay": {"lr": learning_rate, "weight_decay": 0.0},
        "values": {"lr": value_learning_rate, "weight_decay": value_weight_decay},
    }
    return [
        {"params": parameters, "name": name, **settings[name]}
        for name, parameters in groups.items()
        if parameters
    ]


def warmup_cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, total_steps: int, final_share: float
) -> LambdaLR:
    """Schedule a linear rise over `warmup_steps`, then a cosine to `final_share` of the peak."""

    def share(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
        return final_share + (1 - final_share) * 0.5 * (1 + math.cos(math.pi * progress))

    return LambdaLR(optimizer, share)


def clip_apart(model: nn.Module, max_norm: float) -> tuple[Tensor, Tensor]:
    """Clip the gradients of the values and of all other parameters to `max_norm` separately.

    As in facebookresearch/memory: clipped together, a rare large gradient of a few slots would
    stall the whole network.

    Returns:
        Both norms before clipping: (values, others).
    """
    values = {id(parameter) for parameter in value_parameters(model)}

    def clip(parameters: Iterable[nn.Parameter]) -> Tensor:
        return nn.utils.clip_grad_norm_([p for p in parameters if p.grad is not None], max_norm)

    return (
        clip(p for p in model.parameters() if id(p) in values),
        clip(p for p in model.parameters() if id(p) not in values),
    )


class ClipsValuesApart:
    """Mixin for LightningModules that applies `trainer.gradient_clip_val` with `clip_apart`.

    Clipping is always by norm. Without memory it is one norm of all parameters. Lightning's own
    clipping refuses a fused optimizer under `bf16-mixed`.
    """

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the values and the rest separately, by norm."""
        if gradient_clip_val:
            assert isinstance(self, nn.Module)
            clip_apart(self, gradient_clip_val)


def optimizer_of_nothing(module: nn.Module) -> SGD:
    """Build a zero-rate SGD for modules whose weights a callback updates.

    Raises:
        ValueError: if no parameter requires a gradient, since such a callback would add one.
    """
    anchors = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if not anchors:
        raise ValueError(
            "nothing would learn: set model.init_args.trainable to all, lora, values or "
            "memory, or append "
            "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning to "
            "trainer.callbacks"
        )
    return SGD([{"params": anchors, "name": "anchor", "lr": 0.0}])


def scheduled(
    optimizer: Optimizer,
    schedule: Literal["constant", "cosine"],
    warmup_steps: int,
    trainer: Trainer,
) -> Optimizer | OptimizerLRSchedulerConfig:
    """Return an optimizer with warm-up and schedule, for `configure_optimizers`.

    Args:
        optimizer: Optimizer at its peak rates.
        schedule: After warm-up, `constant`, or a `cosine` down to a tenth at the run's end.
        warmup_steps: Steps of linear warm-up.
        trainer: Trainer that knows the number of steps.

    Raises:
        ValueError: if the cosine has no end.
    """
    if schedule == "cosine":
        total_steps = trainer.estimated_stepping_batches
        instead = "model.init_args.schedule=constant"
        return with_cosine(optimizer, warmup_steps, total_steps, 0.1, instead)
    if not warmup_steps:
        return optimizer
    return stepped(optimizer, warmup_cosine(optimizer, warmup_steps, warmup_steps, 1.0))


def with_cosine(
    optimizer: Optimizer,
    warmup_steps: int,
    total_steps: float,
    final_share: float,
    instead: str | None = None,
) -> OptimizerLRSchedulerConfig:
    """Return an optimizer with `warmup_cosine`, for `configure_optimizers`.

    Args:
        optimizer: Optimizer at its peak rates.
        warmup_steps: Steps of linear warm-up.
        total_steps: Step at the end of the cosine.
        final_share: Share of the peak at that end.
        instead: Setting to suggest where the trainer has no end.

    Raises:
        ValueError: if `total_steps` is infinite.
    """
    if not math.isfinite(total_steps):
        raise ValueError(
            "the cosine schedule needs an end: set trainer.max_steps (or trainer.max_epochs)"
            + (f", or {instead}" if instead else "")
        )
    scheduler = warmup_cosine(optimizer, warmup_steps, int(total_steps), final_share)
    return stepped(optimizer, scheduler)


def stepped(optimizer: Optimizer, scheduler: LRScheduler) -> OptimizerLRSchedulerConfig:
    """Return an optimizer with a scheduler that advances every step."""
    return {
        "optimizer": optimizer,
        "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
    }
