"""The fused cell of a GRU, which torch has for CUDA alone."""

from typing import Any

import torch
from torch import Tensor

aten = torch.ops.aten

# Shapes: B rows, H width


def gru_cell(
    input_B3H: Tensor,
    hidden_B3H: Tensor,
    state_BH: Tensor,
    input_bias_3H: Tensor | None = None,
    hidden_bias_3H: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Return the next state, and what the backward needs: gates reset, update and new."""
    if input_bias_3H is not None and hidden_bias_3H is not None:
        input_B3H, hidden_B3H = input_B3H + input_bias_3H, hidden_B3H + hidden_bias_3H
    reset, update, new = input_B3H.chunk(3, 1)
    hidden_reset, hidden_update, hidden_new = hidden_B3H.chunk(3, 1)
    reset, update = (reset + hidden_reset).sigmoid(), (update + hidden_update).sigmoid()
    new = (new + reset * hidden_new).tanh()
    workspace_B5H = torch.cat([reset, update, new, state_BH, hidden_new], 1)
    return new + update * (state_BH - new), workspace_B5H


def gru_cell_backward(grad_BH: Tensor, workspace_B5H: Tensor, has_bias: bool) -> tuple[Any, ...]:
    """Return the gradients of both gates, the state, and both biases."""
    reset, update, new, state, hidden_new = workspace_B5H.chunk(5, 1)
    grad_new = grad_BH * (1 - update) * (1 - new.square())
    grad_update = grad_BH * (state - new) * update * (1 - update)
    grad_reset = grad_new * hidden_new * reset * (1 - reset)
    grad_input = torch.cat([grad_reset, grad_update, grad_new], 1)
    grad_hidden = torch.cat([grad_reset, grad_update, grad_new * reset], 1)
    biases = (grad_input.sum(0), grad_hidden.sum(0)) if has_bias else (None, None)
    return grad_input, grad_hidden, grad_BH * update, *biases


FUSED = {
    aten._thnn_fused_gru_cell.default: gru_cell,
    aten._thnn_fused_gru_cell_backward.default: gru_cell_backward,
}
