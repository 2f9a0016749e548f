"""The l1 norm of a product of matrices that is never kept: value and gradient in one pass."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Shapes: B batch, b samples of one turn, R rows, W hidden units, C columns


class ProductL1(torch.autograd.Function):
    """Mean over samples of the sum of |out diag(slopes_b) in|, with its gradients.

    The gradient of a sum of absolute values needs only signs, so it is formed while a turn's
    product is at hand: three matrix products, and no product outlives its turn. The derivative at 0
    is taken as 0. Once differentiable.
    """

    @staticmethod
    def forward(
        ctx: Any, out_RW: Tensor, slopes_BW: Tensor, in_WC: Tensor, max_elements: int
    ) -> Tensor:
        """Value; keeps the gradients of those arguments that need one."""
        num_samples, width = slopes_BW.shape
        num_rows, num_columns = out_RW.shape[0], in_WC.shape[1]
        needs_out, needs_slopes, needs_in = ctx.needs_input_grad[:3]
        total = out_RW.new_zeros(())
        grad_out_RW = torch.zeros_like(out_RW) if needs_out else None
        grad_in_WC = torch.zeros_like(in_WC) if needs_in else None
        grad_slopes = []
        turn = max(1, max_elements // (num_columns * max(num_rows, width)))
        for slopes_bW in slopes_BW.split(turn):
            # hidden units first, so that all samples of the turn make one matrix product
            scaled_WbC = slopes_bW.mT[:, :, None] * in_WC[:, None, :]
            scaled_Wm = scaled_WbC.reshape(width, -1)
            product_Rm = out_RW @ scaled_Wm
            total += product_Rm.abs().sum()
            if not any((needs_out, needs_slopes, needs_in)):
                continue
            signs_Rm = product_Rm.sign_()
            if grad_out_RW is not None:
                grad_out_RW.addmm_(signs_Rm, scaled_Wm.mT)
            if needs_slopes or needs_in:
                pulled_WbC = (out_RW.mT @ signs_Rm).view_as(scaled_WbC)
                if needs_slopes:
                    grad_slopes.append(torch.einsum("wbc,wc->bw", pulled_WbC, in_WC))
                if grad_in_WC is not None:
                    grad_in_WC += torch.einsum("wbc,bw->wc", pulled_WbC, slopes_bW)
        grad_slopes_BW = torch.cat(grad_slopes) if grad_slopes else None
        ctx.save_for_backward(grad_out_RW, grad_slopes_BW, grad_in_WC)
        ctx.num_samples = num_samples
        return total / num_samples

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale what `forward` kept."""
        scale = grad_outputs[0] / ctx.num_samples
        grads = ctx.saved_tensors
        return (*(None if grad is None else grad * scale for grad in grads), None)
