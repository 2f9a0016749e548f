"""Exact top-k over a product of two sets of half keys, with a backward that touches only winners.

A slot (i, j) scores a_i + b_j, so the K best of N x N slots lie among the K best rows and the K
best columns; and once both halves are sorted, the pair at ranks (i, j) is beaten by the
(i+1)(j+1) - 1 pairs at or above it, so only pairs with (i+1)(j+1) <= K can win: 119 of them at
K = 32, not 1,024.

Source: Lample et al. 2019 (1907.05242), section 3.2; Berges et al. 2024 (2412.09764), section 3.1.
Deviation: the papers rank all K * K pairs; the result is the same.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from models.row_topk import row_topk
from models.weighted_gather import transposed_gather

# Shapes: B queries, H heads, E half width, N half keys, K kept, C candidate pairs, P = B * H
# Half scores of one chunk should stay in the cache; a fresh large allocation costs more than
# the arithmetic on it.
_CHUNK_ELEMENTS_CPU = 1 << 21
_CHUNK_ELEMENTS_GPU = 1 << 28


@lru_cache(maxsize=64)
def candidate_ranks(num_kept: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Rank pairs (i, j), zero-based, with (i+1)(j+1) <= num_kept.

    >>> len(candidate_ranks(32)[0])
    119
    """
    pairs = [
        (i, j) for i in range(num_kept) for j in range(num_kept) if (i + 1) * (j + 1) <= num_kept
    ]
    return tuple(i for i, _ in pairs), tuple(j for _, j in pairs)


def product_key_topk(query_BH2E: Tensor, keys_H2NE: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Find the K best of N * N slots for each query and head.

    Args:
        query_BH2E: Queries in two halves.
        keys_H2NE: Half keys of each head.
        num_kept: K, at most N.

    Raises:
        ValueError: if K is larger than N; exactness would be lost.

    Returns:
        ids_BHK: int64 in [0, N*N), slot (i, j) = i * N + j, best first.
        scores_BHK: a_i + b_j, descending, differentiable in queries and keys.

    >>> ids, scores = product_key_topk(torch.ones(1, 1, 2, 1), torch.tensor([[[[1.], [3.]],
    ...     [[5.], [2.]]]]), 2)
    >>> ids.tolist(), scores.tolist()
    ([[[2, 0]]], [[[8.0, 6.0]]])
    """
    num_keys = keys_H2NE.shape[2]
    if num_kept > num_keys:
        raise ValueError(
            f"top_k={num_kept} is larger than the {num_keys} half keys: the exact top-k is not "
            f"defined then. Lower top_k or raise num_keys (slots = num_keys squared)."
        )
    result: tuple[Tensor, Tensor] = _ProductKeyTopK.apply(query_BH2E, keys_H2NE, num_kept)
    return result


class _ProductKeyTopK(torch.autograd.Function):
    """Top-k whose backward reads the K winning keys instead of all N."""

    @staticmethod
    def forward(
        ctx: Any, query_BH2E: Tensor, keys_H2NE: Tensor, num_kept: int
    ) -> tuple[Tensor, Tensor]:
        ids, scores, half_ids, half_ranks = _search(query_BH2E, keys_H2NE, num_kept)
        ctx.save_for_backward(query_BH2E, keys_H2NE, half_ids, half_ranks)
        ctx.mark_non_differentiable(ids)
        return ids, scores

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(
        ctx: Any, _: Tensor, grad_BHK: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None]:
        query_BH2E, keys_H2NE, half_ids_BH2K, half_ranks_BH2K = ctx.saved_tensors
        _, num_heads, _, half_dim = query_BH2E.shape
        num_keys = keys_H2NE.shape[2]
        # A winner's gradient goes to its row and its column; many winners share few rows.
        grad_BH2K = torch.zeros_like(half_ranks_BH2K, dtype=grad_BHK.dtype)
        grad_BH2K.scatter_add_(3, half_ranks_BH2K, grad_BHK.unsqueeze(2).expand_as(grad_BH2K))
        used = torch.zeros_like(half_ranks_BH2K, dtype=torch.bool)
        used.scatter_(3, half_ranks_BH2K, True)
        used_PK = used.flatten(0, 2)
        offset_H2 = torch.arange(num_heads * 2, device=half_ids_BH2K.device) * num_keys
        flat_ids_BH2K = half_ids_BH2K + offset_H2.view(num_heads, 2, 1)
        ids_M, weights_M = flat_ids_BH2K[used], grad_BH2K[used]

        counts_P = used_PK.sum(1)
        grad_query = grad_keys = None
        if ctx.needs_input_grad[0]:
            offsets_P = counts_P.cumsum(0) - counts_P
            grad_query = F.embedding_bag(
                ids_M,
                keys_H2NE.reshape(-1, half_dim),
                offsets_P,
                per_sample_weights=weights_M.to(keys_H2NE.dtype),
                mode="sum",
            ).view_as(query_BH2E)
        if ctx.needs_input_grad[1]:
            bags_M = torch.repeat_interleave(counts_P)
            rows_U, sums_UE = transposed_gather(
                ids_M, bags_M, weights_M, query_BH2E.reshape(-1, half_dim)
            )
            grad_keys = torch.zeros_like(keys_H2NE)
            grad_keys.view(-1, half_dim)[rows_U] = sums_UE.to(keys_H2NE.dtype)
        return grad_query, grad_keys, None


def _search(
    query_BH2E: Tensor, keys_H2NE: Tensor, num_kept: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Search chunk by chunk; also return the half ids and the ranks that the backward needs."""
    num_queries, num_heads = query_BH2E.shape[:2]
    device, shape = query_BH2E.device, (num_queries, num_heads, num_kept)
    ids = torch.empty(shape, dtype=torch.int64, device=device)
    scores = torch.empty(shape, dtype=query_BH2E.dtype, device=device)
    half_shape = (num_queries, num_heads, 2, num_kept)
    half_ids = torch.empty(half_shape, dtype=torch.int64, device=device)
    half_ranks = torch.empty(half_shape, dtype=torch.int64, device=device)
    chunk = queries_per_chunk(keys_H2NE)
    for start in range(0, num_queries, chunk):
        part = slice(start, min(start + chunk, num_queries))
        halves_H2BN = half_scores(query_BH2E[part], keys_H2NE)
        best_H2BK, columns_H2BK = row_topk(halves_H2BN, num_kept)
        pairs = best_pairs(best_H2BK, columns_H2BK, keys_H2NE.shape[2])
        ids[part] = pairs.ids_HBK.transpose(0, 1)
        scores[part] = pairs.scores_HBK.transpose(0, 1)
        half_ids[part] = columns_H2BK.permute(2, 0, 1, 3)
        half_ranks[part] = pairs.ranks_H2BK.permute(2, 0, 1, 3)
    return ids, scores, half_ids, half_ranks


def queries_per_chunk(keys_H2NE: Tensor) -> int:
    """Queries whose half scores fit in one chunk."""
    on_cpu = keys_H2NE.device.type == "cpu"
    budget = _CHUNK_ELEMENTS_CPU if on_cpu else _CHUNK_ELEMENTS_GPU
    return max(1, budget // keys_H2NE[..., 0].numel())


def half_scores(query_BH2E: Tensor, keys_H2NE: Tensor) -> Tensor:
    """Score every half key. Returns halves_H2BN: a_i in the first half, b_j in the second."""
    query_GBE = query_BH2E.flatten(1, 2).transpose(0, 1)
    halves_GBN = torch.bmm(query_GBE, keys_H2NE.flatten(0, 1).transpose(1, 2))
    return halves_GBN.unflatten(0, keys_H2NE.shape[:2])


class Pairs(NamedTuple):
    """The best slots, and the ranks of their halves among the best half keys."""

    ids_HBK: Tensor
    scores_HBK: Tensor
    ranks_H2BK: Tensor


def best_pairs(best_H2BK: Tensor, columns_H2BK: Tensor, num_keys: int) -> Pairs:
    """Find the K best slots among the candidate pairs of the K best rows and columns.

    Args:
        best_H2BK: Scores of the best half keys, descending.
        columns_H2BK: Which half keys these are.
        num_keys: N.
    """
    num_kept = best_H2BK.shape[-1]
    rows_C, columns_C = (
        torch.tensor(ranks, device=best_H2BK.device) for ranks in candidate_ranks(num_kept)
    )
    pairs_HBC = best_H2BK[:, 0].index_select(-1, rows_C)
    pairs_HBC += best_H2BK[:, 1].index_select(-1, columns_C)
    scores_HBK, winners_HBK = row_topk(pairs_HBC, num_kept)
    ranks_H2BK = torch.stack((rows_C[winners_HBK], columns_C[winners_HBK]), 1)
    halves_H2BK = columns_H2BK.gather(-1, ranks_H2BK)
    return Pairs(halves_H2BK[:, 0] * num_keys + halves_H2BK[:, 1], scores_HBK, ranks_H2BK)
