"""Parameter groups, learning-rate schedule and clipping for language models with memory."""

import math
from collections.abc import Iterable
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from triptych.metrics.sharded_strategies import is_unsupported
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.values.rounding_optimizers import RoundingAdamW
from triptych.models.sharding import local


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
    """Build AdamW over `parameter_groups`; bfloat16 weights are rounded stochastically."""
    rates = (learning_rate, value_learning_rate, weight_decay, value_weight_decay)
    return RoundingAdamW(parameter_groups(model, *rates), betas=betas)


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
    stall the whole network. Norms of sharded gradients (DTensors) are summed over the shards, so
    this is then a collective.

    Returns:
        Both norms before clipping: (values, others).
    """
    values = {id(parameter) for parameter in value_parameters(model)}
    return (
        clip_norm([p for p in model.parameters() if id(p) in values], max_norm),
        clip_norm([p for p in model.parameters() if id(p) not in values], max_norm),
    )


def clip_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale the gradients of parameters, of which some may be shards, to a norm of `max_norm`.

    Returns:
        The norm before clipping, a scalar: that of whole gradients, and the same on all processes.
    """
    with_gradient = [parameter for parameter in parameters if parameter.grad is not None]
    gradients = [p.grad for p in with_gradient if p.grad is not None]
    sharded = [gradient for gradient in gradients if isinstance(gradient, DTensor)]
    if not sharded:
        return nn.utils.clip_grad_norm_(with_gradient, max_norm)
    whole = [gradient for gradient in gradients if not isinstance(gradient, DTensor)]
    norms = [total_of_shards(nn.utils.get_total_norm(sharded))]
    if whole:
        norms.append(nn.utils.get_total_norm(whole))
    norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
    share = (max_norm / (norm + 1e-6)).clamp(max=1.0)  # as in clip_grad_norm_
    torch._foreach_mul_([local(gradient) for gradient in gradients], share)
    return norm


def total_of_shards(norm: Tensor) -> Tensor:
    """Return the value of a norm that `get_total_norm` left spread over shards."""
    whole: Tensor = norm.full_tensor() if isinstance(norm, DTensor) else norm
    return whole


class ClipsValuesApart:
    """Mixin for LightningModules that applies `trainer.gradient_clip_val` with `clip_apart`.

    Clipping is always by norm. Without memory it is one norm of all parameters. Lightning's own
    clipping refuses a fused optimizer under `bf16-mixed`, and under `16-mixed` it leaves a fused
    optimizer's gradients multiplied by the loss scale. Here they are divided by it first.
    """

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the values and the rest separately, by norm.

        Raises:
            ValueError: if the strategy shards gradients in a way that hides their norm, or
                clipping by value is asked for.
        """
        if not gradient_clip_val:
            return
        assert isinstance(self, LightningModule)
        if gradient_clip_algorithm == "value":
            raise ValueError(
                f"trainer.gradient_clip_algorithm is value, but {type(self).__name__} clips by "
                "norm: set it to norm, or trainer.gradient_clip_val to 0"
            )
        trainer = self._trainer  # None in a module that is used without one
        if trainer is not None:
            if is_unsupported(trainer):
                raise ValueError(
                    f"trainer.gradient_clip_val clips by the norm of whole gradients, which "
                    f"{type(trainer.strategy).__name__} does not show: set it to 0, or use "
                    "configs/hardware/fsdp2.yaml"
                )
            _unscale(trainer.precision_plugin, optimizer)
        clip_apart(self, gradient_clip_val)


def _unscale(precision: Any, optimizer: Optimizer) -> None:
    """Divide gradients by the loss scale, if a scaler is at work and Lightning has not done so."""
    scaler = getattr(precision, "scaler", None)
    if scaler is not None and getattr(optimizer, "_step_supports_amp_scaling", False):
        scaler.unscale_(optimizer)


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
