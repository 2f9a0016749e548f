"""A gated recurrent unit over token ids, for CPUs: the backward pass is written out.

    r = sigmoid(x_r + U_r h + c_r)     z = sigmoid(x_z + U_z h + c_z)
    n = tanh(x_n + r (U_n h + c_n))    h' = (1 - z) n + z h

as in Cho et al. (2014), in the arrangement of `torch.nn.GRU`, whose parameters fit. What the input
adds (x) comes from outside: of a vocabulary of some thirty tokens it is a row of a small table, not
a matrix product a token. The weight gradient is one product over all steps.
"""

# Shapes: T steps, B rows, H state width, G = 3 H gates (reset, update, candidate)

from typing import Any

import torch
from torch import Tensor


def gru_states(inputs_TBG: Tensor, weight_GH: Tensor, bias_G: Tensor, state_BH: Tensor) -> Tensor:
    """Run the recurrence over all steps.

    Args:
        inputs_TBG: What the input adds to each gate, its bias included.
        weight_GH: U, of the state.
        bias_G: c, of the state.
        state_BH: The first state.

    Returns:
        The state after each step, (T, B, H); differentiable in all four.
    """
    states: Tensor = _Recurrence.apply(inputs_TBG, weight_GH, bias_G, state_BH)
    return states


def gru_step(inputs_BG: Tensor, weight_GH: Tensor, bias_G: Tensor, state_BH: Tensor) -> Tensor:
    """Take one step; returns the next state, (B, H)."""
    state_BH, _, _ = _step(inputs_BG, weight_GH.t(), bias_G, state_BH)
    return state_BH


def _step(
    inputs_BG: Tensor, weight_HG: Tensor, bias_G: Tensor, state_BH: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Next state; the gates (r, z, n); and U_n h + c_n."""
    width = state_BH.shape[1]
    added_BG = torch.addmm(bias_G, state_BH, weight_HG)
    opening = torch.sigmoid(inputs_BG[:, : 2 * width] + added_BG[:, : 2 * width])
    candidate_BH = added_BG[:, 2 * width :]
    new_BH = torch.addcmul(inputs_BG[:, 2 * width :], opening[:, :width], candidate_BH).tanh_()
    next_BH = torch.lerp(new_BH, state_BH, opening[:, width:])
    return next_BH, torch.cat([opening, new_BH], 1), candidate_BH


class _Recurrence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, inputs_TBG: Tensor, weight_GH: Tensor, bias_G: Tensor, state_BH: Tensor
    ) -> Tensor:
        steps, rows, _ = inputs_TBG.shape
        width = state_BH.shape[1]
        states = state_BH.new_empty(steps + 1, rows, width)  # one more: the first
        gates_TBG = torch.empty_like(inputs_TBG)
        candidates_TBH = state_BH.new_empty(steps, rows, width)
        states[0] = state_BH
        weight_HG = weight_GH.t()
        for t in range(steps):
            states[t + 1], gates_TBG[t], candidates_TBH[t] = _step(
                inputs_TBG[t], weight_HG, bias_G, states[t]
            )
        ctx.save_for_backward(weight_GH, states, gates_TBG, candidates_TBH)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (grad_TBH,) = gradients
        weight_GH, states, gates_TBG, candidates_TBH = ctx.saved_tensors
        steps, rows, width = grad_TBH.shape
        into_inputs_TBG = torch.empty_like(gates_TBG)
        into_added_TBG = torch.empty_like(gates_TBG)
        grad_BH = torch.zeros_like(states[0])
        for t in reversed(range(steps)):
            grad_BH = grad_BH + grad_TBH[t]
            reset, update, new = gates_TBG[t].split(width, 1)
            pre_new = grad_BH * (1 - update) * (1 - new * new)
            pre_reset = pre_new * candidates_TBH[t] * reset * (1 - reset)
            pre_update = grad_BH * (states[t] - new) * update * (1 - update)
            torch.cat([pre_reset, pre_update, pre_new], 1, out=into_inputs_TBG[t])
            torch.cat([pre_reset, pre_update, pre_new * reset], 1, out=into_added_TBG[t])
            grad_BH = torch.addmm(grad_BH * update, into_added_TBG[t], weight_GH)
        flat = into_added_TBG.view(steps * rows, -1)
        into_weight_GH = flat.t() @ states[:-1].reshape(steps * rows, width)
        return into_inputs_TBG, into_weight_GH, flat.sum(0), grad_BH
