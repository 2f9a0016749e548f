"""The gather as an operation of torch, so that torch.compile takes it as one node of its graph."""

from typing import Any

import torch
from torch import Tensor

from triptych.models.remember.values.weighted_gather import (
    gather_gradients,
    table_gradient,
    weight_gradient,
    weighted_gather,
)


@torch.library.custom_op("triptych::weighted_gather", mutates_args=())
def gather_op(values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor) -> Tensor:
    """Compute `weighted_gather` with gradients for the whole table and the weights."""
    return weighted_gather(values_SD, ids_BK, weights_BK)


@torch.library.custom_op("triptych::weighted_gather_backward", mutates_args=())
def gather_backward_op(
    grad_BD: Tensor,
    values_SD: Tensor,
    ids_BK: Tensor,
    weights_BK: Tensor,
    for_values: bool,
    for_weights: bool,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients asked for; the other one is empty."""
    grad_BD = grad_BD.contiguous()
    none = values_SD.new_empty(0)
    if for_values and for_weights:
        return gather_gradients(grad_BD, values_SD, ids_BK, weights_BK)
    if for_values:
        return table_gradient(grad_BD, values_SD, ids_BK, weights_BK), none
    return none, weight_gradient(grad_BD, values_SD, ids_BK).to(weights_BK.dtype)


@gather_op.register_fake
def _(values_SD: Tensor, ids_BK: Tensor, weights_BK: Tensor) -> Tensor:
    return values_SD.new_empty(ids_BK.shape[0], values_SD.shape[1])


@gather_backward_op.register_fake
def _(
    grad_BD: Tensor,
    values_SD: Tensor,
    ids_BK: Tensor,
    weights_BK: Tensor,
    for_values: bool,
    for_weights: bool,
) -> tuple[Tensor, Tensor]:
    values = torch.empty_like(values_SD) if for_values else values_SD.new_empty(0)
    weights = torch.empty_like(weights_BK) if for_weights else values_SD.new_empty(0)
    return values, weights


def _keep(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _backward(ctx: Any, grad_BD: Tensor) -> tuple[Tensor | None, None, Tensor | None]:
    needs_values, _, needs_weights = ctx.needs_input_grad
    values, weights = gather_backward_op(
        grad_BD, *ctx.saved_tensors, for_values=needs_values, for_weights=needs_weights
    )
    return values if needs_values else None, None, weights if needs_weights else None


gather_op.register_autograd(_backward, setup_context=_keep)
