"""Terms that callbacks add to a module's loss."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

LossTerm = Callable[[LightningModule, Any], Tensor]


def add_loss_term(callback: Callback, pl_module: LightningModule, term: LossTerm) -> None:
    """Append to `pl_module.loss_terms`, once however often the module is set up.

    Args:
        callback: Whose term it is, for the message.
        pl_module: A module that adds up terms.
        term: `term(module, batch)` returns a scalar whose mean over ranks is added to the loss.

    Raises:
        ValueError: if the module has no such list.
    """
    terms = getattr(pl_module, "loss_terms", None)
    if not isinstance(terms, list):
        raise ValueError(
            f"{type(callback).__name__} adds a term to the loss, but {type(pl_module).__name__} "
            "has no list `loss_terms`: use a module that trains a language model, such as "
            "triptych.lit_modules.remember.continual_finetuning.ContinualFinetuning"
        )
    if term not in terms:
        terms.append(term)


def sum_over_ranks(trainer: Trainer, value: Tensor) -> Tensor:
    """Sum over ranks, without a gradient; `value` is left as it is."""
    value = value.detach()
    if trainer.world_size == 1:
        return value
    total: Tensor = trainer.strategy.reduce(value.clone(), reduce_op="sum")
    return total
