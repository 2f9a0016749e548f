"""Dot products of queries with a few keys each, without gathering the keys."""

from typing import Any

import torch
from torch import Tensor

from triptych.models.remember.values.weighted_gather import (
    dense_transposed_gather,
    weight_gradient,
    weighted_gather,
)

# Shapes: B queries, H heads, D key width, K keys of a query, S slots, R = B * H, W = H * S


def key_scores(query_BHD: Tensor, keys_HSD: Tensor, ids_BHK: Tensor) -> Tensor:
    """Score the given keys: scores[b, h, k] = query[b, h] . keys[h, ids[b, h, k]].

    Differentiable in queries and keys. Gathering the keys into a (B, H, K, D) tensor would cost
    several times more, in the forward and in the backward pass.

    Args:
        query_BHD: Queries, in the dtype of the keys.
        keys_HSD: The keys of each head.
        ids_BHK: int64 in [0, S).

    >>> keys = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]])
    >>> key_scores(torch.tensor([[[2.0, 3.0]]]), keys, torch.tensor([[[2, 0]]])).tolist()
    [[[5.0, 2.0]]]
    """
    scores: Tensor = _KeyScores.apply(query_BHD, keys_HSD, ids_BHK)  # type: ignore[no-untyped-call]
    return scores


class _KeyScores(torch.autograd.Function):
    """The gradient of a weighted gather in its weights; the other transposes give the backward."""

    @staticmethod
    def forward(ctx: Any, query_BHD: Tensor, keys_HSD: Tensor, ids_BHK: Tensor) -> Tensor:
        num_heads, num_slots, _ = keys_HSD.shape
        first_H1 = torch.arange(num_heads, device=ids_BHK.device).unsqueeze(1) * num_slots
        rows_RK = (ids_BHK + first_H1).flatten(0, 1)
        query_RD = query_BHD.flatten(0, 1).contiguous()
        ctx.save_for_backward(query_RD, keys_HSD, rows_RK)
        return weight_gradient(query_RD, keys_HSD.flatten(0, 1), rows_RK).view(ids_BHK.shape)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad_BHK: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        query_RD, keys_HSD, rows_RK = ctx.saved_tensors
        keys_WD, grad_RK = keys_HSD.flatten(0, 1), grad_BHK.flatten(0, 1)
        grad_query = grad_keys = None
        if ctx.needs_input_grad[0]:
            grad_query = weighted_gather(keys_WD, rows_RK, grad_RK)
            grad_query = grad_query.view(-1, keys_HSD.shape[0], keys_HSD.shape[2])
        if ctx.needs_input_grad[1]:
            num_queries, num_kept = rows_RK.shape
            bags_M = torch.arange(num_queries, device=rows_RK.device).repeat_interleave(num_kept)
            exact = torch.promote_types(keys_HSD.dtype, torch.float32)
            uses = (rows_RK.flatten(), bags_M, grad_RK.flatten(), query_RD.to(exact))
            sums_WD = dense_transposed_gather(*uses, keys_WD.shape[0])
            grad_keys = sums_WD.view_as(keys_HSD).to(keys_HSD.dtype)
        return grad_query, grad_keys, None
