"""A gated recurrent unit over token ids, on any device, with an explicit backward pass.

    r = sigmoid(x_r + U_r h + c_r)     z = sigmoid(x_z + U_z h + c_z)
    n = tanh(x_n + r (U_n h + c_n))    h' = (1 - z) n + z h

as in Cho et al. (2014), with the parameters of `torch.nn.GRU`. The caller computes the input part
x: for a vocabulary of some thirty tokens it is a row of a small table, not a matrix product.
The weight gradient is one product over all steps. Under autocast (`rnn.bfloat16_products`) the
products are rounded to bfloat16, which takes half the time on processors with such instructions;
states, gates and sums keep the first state's precision. Rows that have ended are left out of all
later steps. cuDNN's GRU is not used: it has no backward pass in eval mode, in which policies stay,
and autocast turns it to float16.
"""

# Shapes: T steps, B rows, H state width, G = 3 H gates (reset, update, candidate)

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

# g s (1 - s) and g (1 - n^2), of gradients g and outputs s, n.
_SIGMOID = torch.ops.aten.sigmoid_backward.grad_input
_TANH = torch.ops.aten.tanh_backward.grad_input


def gru_states(
    inputs_TBG: Tensor,
    weight_GH: Tensor,
    bias_G: Tensor,
    state_BH: Tensor,
    num_open_T: Sequence[int] | None = None,
) -> Tensor:
    """Run the recurrence over all steps.

    Args:
        inputs_TBG: x, the input part of each gate, with its bias.
        weight_GH: U, the weight of the state.
        bias_G: c, the bias of the state.
        state_BH: The first state.
        num_open_T: Number of rows, from the first on, that take each step; it never grows. None:
            all rows take every step.

    Returns:
        The state after each step, (T, B, H), 0 for steps that a row does not take; differentiable
        in all four tensors.

    Raises:
        ValueError: if the number of rows grows, or there is not one number per step.
    """
    steps, rows, _ = inputs_TBG.shape
    taken = [rows] * steps if num_open_T is None else list(num_open_T)
    if len(taken) != steps or any(b > a for a, b in zip([rows, *taken], taken, strict=False)):
        raise ValueError(
            f"num_open_T is {taken} for {steps} steps of {rows} rows: give one number a step, "
            "none larger than the one before"
        )
    states: Tensor = _Recurrence.apply(  # type: ignore[no-untyped-call]
        inputs_TBG, weight_GH, bias_G, state_BH, taken
    )
    return states


def gru_step(inputs_BG: Tensor, weight_GH: Tensor, bias_G: Tensor, state_BH: Tensor) -> Tensor:
    """Take one step; returns the next state, (B, H), in the precision of the one before."""
    width = state_BH.shape[1]
    inputs_BG = inputs_BG.to(state_BH.dtype)
    added_BG = torch.addmm(bias_G, state_BH, weight_GH.t()).to(state_BH.dtype)
    opening = torch.sigmoid(inputs_BG[:, : 2 * width] + added_BG[:, : 2 * width])
    candidate_BH = added_BG[:, 2 * width :]
    new_BH = torch.addcmul(inputs_BG[:, 2 * width :], opening[:, :width], candidate_BH).tanh_()
    return torch.lerp(new_BH, state_BH, opening[:, width:])


def _of_products(weight: Tensor) -> torch.dtype:
    """Return the dtype of products: the weight's, or autocast's."""
    kind = weight.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight.dtype


class _Recurrence(torch.autograd.Function):
    """All steps, computed in place, since allocation took as long as the arithmetic."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs_TBG: Tensor,
        weight_GH: Tensor,
        bias_G: Tensor,
        state_BH: Tensor,
        num_open_T: list[int],
    ) -> Tensor:
        steps, rows, _ = inputs_TBG.shape
        width = state_BH.shape[1]
        ctx.dtype, ctx.num_open_T = _of_products(weight_GH), num_open_T
        weight_HG, bias_G = weight_GH.t().to(ctx.dtype), bias_G.to(ctx.dtype)
        states = state_BH.new_empty(steps + 1, rows, width)  # one more: the first
        gates_TBG = torch.empty_like(inputs_TBG)
        added_TBG = torch.empty_like(inputs_TBG, dtype=ctx.dtype)
        states[0] = state_BH
        with torch.autocast(state_BH.device.type, enabled=False):
            for t, num_open in enumerate(num_open_T):
                inputs, added = inputs_TBG[t, :num_open], added_TBG[t, :num_open]
                gates, before = gates_TBG[t, :num_open], states[t, :num_open]
                torch.addmm(bias_G, before.to(ctx.dtype), weight_HG, out=added)
                opening, new = gates[:, : 2 * width], gates[:, 2 * width :]
                torch.add(inputs[:, : 2 * width], added[:, : 2 * width], out=opening).sigmoid_()
                candidate = added[:, 2 * width :].to(new.dtype)
                torch.addcmul(
                    inputs[:, 2 * width :], opening[:, :width], candidate, out=new
                ).tanh_()
                torch.lerp(new, before, opening[:, width:], out=states[t + 1, :num_open])
                states[t + 1, num_open:] = 0
        ctx.save_for_backward(weight_GH, states, gates_TBG, added_TBG)
        return states[1:]

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (grad_TBH,) = gradients
        weight_GH, states, gates_TBG, added_TBG = ctx.saved_tensors
        steps, rows, width = grad_TBH.shape
        weight = weight_GH.to(ctx.dtype)
        into_inputs_TBG = torch.empty_like(gates_TBG)
        into_added_TBG = torch.empty_like(added_TBG)
        # Rows join as t decreases, with zero gradient.
        all_grad_BH = torch.zeros_like(states[0])
        all_kept_BH, all_room_BH = torch.empty_like(all_grad_BH), torch.empty_like(all_grad_BH)
        for t in reversed(range(steps)):
            num_open = ctx.num_open_T[t]
            grad_BH, kept_BH = all_grad_BH[:num_open], all_kept_BH[:num_open]
            room_BH, before_BH = all_room_BH[:num_open], states[t, :num_open]
            added_BG, into_added_BG = added_TBG[t, :num_open], into_added_TBG[t, :num_open]
            reset, update, new = gates_TBG[t, :num_open].split(width, 1)
            into_inputs_BG = into_inputs_TBG[t, :num_open]
            into_reset, into_update, into_new = into_inputs_BG.split(width, 1)
            grad_BH += grad_TBH[t, :num_open]
            torch.mul(grad_BH, update, out=kept_BH)
            torch.sub(grad_BH, kept_BH, out=room_BH)
            _TANH(room_BH, new, grad_input=into_new)
            torch.mul(into_new, added_BG[:, 2 * width :], out=room_BH)
            _SIGMOID(room_BH, reset, grad_input=into_reset)
            torch.sub(before_BH, new, out=room_BH).mul_(grad_BH)
            _SIGMOID(room_BH, update, grad_input=into_update)
            into_added_BG[:, : 2 * width] = into_inputs_BG[:, : 2 * width]
            into_added_BG[:, 2 * width :] = torch.mul(into_new, reset, out=room_BH)
            if ctx.dtype == grad_BH.dtype:
                torch.addmm(kept_BH, into_added_BG, weight, out=grad_BH)
            else:
                torch.add(kept_BH, into_added_BG @ weight, out=grad_BH)
            into_inputs_TBG[t, num_open:] = 0
            into_added_TBG[t, num_open:] = 0
        flat = into_added_TBG.view(steps * rows, -1)
        before = states[:-1].reshape(steps * rows, width).to(ctx.dtype)
        into_weight_GH = (flat.t() @ before).to(weight_GH.dtype)
        into_bias_G = flat.sum(0, dtype=weight_GH.dtype)
        return into_inputs_TBG, into_weight_GH, into_bias_G, all_grad_BH, None
