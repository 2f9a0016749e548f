"""The l1 norm of a matrix product, with value and gradient in one pass and no product kept."""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Shapes: B batch, b samples of one turn, R rows, r rows of one block, W hidden units, C columns,
# m all columns of a turn (b C)

# Size of a block that stays in a core's cache (1 MiB) between the product that makes it and the two
# that use it. GPUs need large products instead.
CPU_ELEMENTS = 2**18


def product_l1(out_RW: Tensor, slopes_BW: Tensor, in_WC: Tensor, max_elements: int) -> Tensor:
    """Average over samples the sum of |out diag(slopes_b) in|: a scalar, differentiable once.

    Args:
        out_RW: Left factor.
        slopes_BW: Diagonal factor of each sample.
        in_WC: Right factor.
        max_elements: Elements of the product held at once; at least one sample's row.
    """
    value: Tensor = _ProductL1.apply(out_RW, slopes_BW, in_WC, max_elements)  # type: ignore[no-untyped-call]
    return value


class _ProductL1(torch.autograd.Function):
    """The mean over samples of the sum of |out diag(slopes_b) in|, with its gradients.

    The gradient of a sum of absolute values only needs signs, so it is formed together with each
    block of the product: three matrix products, and no block is kept. Pulled back to the hidden
    units, the signs also give the value, without another pass over the product. The derivative at 0
    is taken as 0. Differentiable once.
    """

    @staticmethod
    def forward(
        ctx: Any, out_RW: Tensor, slopes_BW: Tensor, in_WC: Tensor, max_elements: int
    ) -> Tensor:
        """Compute the value; save the gradients of those arguments that need one."""
        num_samples, width = slopes_BW.shape
        num_rows, num_columns = out_RW.shape[0], in_WC.shape[1]
        needs_out, *needs_pulled = ctx.needs_input_grad[:3]
        pulls = any(needs_pulled)
        if out_RW.device.type == "cpu":
            max_elements = min(max_elements, CPU_ELEMENTS)
        per_turn = max(1, max_elements // (num_columns * max(num_rows, width)))
        per_block = max(1, max_elements // (num_columns * per_turn))

        total = out_RW.new_zeros(())
        grad_out_RW = torch.empty_like(out_RW) if needs_out else None
        grad_in_WC = torch.zeros_like(in_WC) if pulls else None
        grad_slopes = []
        buffer_rm = out_RW.new_empty(min(per_block, num_rows), per_turn * num_columns)
        for turn, slopes_bW in enumerate(slopes_BW.split(per_turn)):
            # hidden units first, so that all samples of the turn form one matrix product
            scaled_WbC = slopes_bW.mT[:, :, None] * in_WC[:, None, :]
            scaled_Wm = scaled_WbC.reshape(width, -1)
            pulled_Wm = torch.empty_like(scaled_Wm) if pulls else None
            for rows in range(0, num_rows, per_block):
                out_rW = out_RW[rows : rows + per_block]
                product_rm = buffer_rm[: len(out_rW), : scaled_Wm.shape[1]]
                torch.mm(out_rW, scaled_Wm, out=product_rm)
                if pulled_Wm is None:
                    total += product_rm.abs().sum()
                signs_rm = product_rm.sign_()
                if grad_out_RW is not None:
                    grad_out_RW[rows : rows + per_block].addmm_(
                        signs_rm, scaled_Wm.mT, beta=min(turn, 1)
                    )
                if pulled_Wm is not None:
                    pulled_Wm.addmm_(out_rW.mT, signs_rm, beta=min(rows, 1))
            if pulled_Wm is not None and grad_in_WC is not None:
                pulled_WbC = pulled_Wm.view_as(scaled_WbC)
                grad_slopes_bW = torch.linalg.vecdot(pulled_WbC, in_WC[:, None, :]).mT
                grad_slopes.append(grad_slopes_bW)
                total += (grad_slopes_bW * slopes_bW).sum()
                grad_in_WC += pulled_WbC.mul_(slopes_bW.mT[:, :, None]).sum(1)
        grad_slopes_BW = torch.cat(grad_slopes) if grad_slopes else None
        ctx.save_for_backward(grad_out_RW, grad_slopes_BW, grad_in_WC)
        ctx.num_samples = num_samples
        return total / num_samples

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        """Scale the gradients that `forward` has saved."""
        scale = grad_outputs[0] / ctx.num_samples
        grads = ctx.saved_tensors
        return (*(None if grad is None else grad * scale for grad in grads), None)
