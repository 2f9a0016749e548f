"""Exact top-k over a product of two sets of half keys; its backward reads only the winners.

A slot (i, j) scores a_i + b_j, so the K best of N x N slots lie among the K best rows and the K
best columns. With both halves sorted, (i+1)(j+1) - 1 pairs score at least as high as the pair at
ranks (i, j). So only pairs with (i+1)(j+1) <= K can win: 119 of them at K = 32, not 1,024.

Source: Lample et al. 2019 (1907.05242), section 3.2; Berges et al. 2024 (2412.09764), section 3.1.
Deviation: the papers rank all K * K pairs; the result is the same.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from triptych.models.remember.index.row_topk import row_topk
from triptych.models.remember.values.weighted_gather import dense_transposed_gather, ragged_gather

# Shapes: B queries, H heads, E half width, N half keys, K kept, C candidate pairs,
# P queries of all heads (and halves), M half keys that a backward needs
# Half scores of a chunk should stay in the cache: a large new allocation costs more than the
# arithmetic.
_CHUNK_ELEMENTS_CPU = 1 << 21
_CHUNK_ELEMENTS_GPU = 1 << 28


def candidate_ranks(num_kept: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """List the pairs of ranks (i, j), zero-based, with (i+1)(j+1) <= num_kept.

    >>> len(candidate_ranks(32)[0])
    119
    """
    # No cache, at which `torch.compile` would warn: it takes microseconds.
    pairs = [(i, j) for i in range(num_kept) for j in range(num_kept // (i + 1))]
    return tuple(i for i, _ in pairs), tuple(j for _, j in pairs)


_ON_DEVICE: dict[tuple[torch.device, int], Tensor] = {}


def _candidate_ranks_on(device: torch.device, num_kept: int) -> Tensor:
    """Return `candidate_ranks` as a tensor, int64 (2, C), copied to a device only once."""
    if torch.compiler.is_compiling():
        return torch.tensor(candidate_ranks(num_kept), device=device, dtype=torch.int64)
    if (device, num_kept) not in _ON_DEVICE:
        with torch.inference_mode(False):  # a tensor of that mode could not be used outside of it
            ranks_2C = torch.tensor(candidate_ranks(num_kept), device=device, dtype=torch.int64)
        _ON_DEVICE[device, num_kept] = ranks_2C
    return _ON_DEVICE[device, num_kept]


def num_candidates(num_kept: int) -> int:
    """Return C, the number of pairs that can win."""
    return sum(num_kept // (i + 1) for i in range(num_kept))


def product_key_topk(query_BH2E: Tensor, keys_H2NE: Tensor, num_kept: int) -> tuple[Tensor, Tensor]:
    """Find the K best of N * N slots for each query and head.

    Args:
        query_BH2E: Queries in two halves.
        keys_H2NE: Half keys of each head.
        num_kept: K, at most N.

    Raises:
        ValueError: if K is larger than N, where the result would not be exact.

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
    result: tuple[Tensor, Tensor] = _ProductKeyTopK.apply(  # type: ignore[no-untyped-call]
        query_BH2E, keys_H2NE, num_kept
    )
    return result


class _ProductKeyTopK(torch.autograd.Function):
    """Top-k with a backward pass that reads the K winning keys instead of all N."""

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
        query_BH2E, keys_H2NE, half_ids_2HBK, half_ranks_2HBK = ctx.saved_tensors
        half_ids_BH2K = half_ids_2HBK.permute(2, 1, 0, 3).contiguous()
        half_ranks_BH2K = half_ranks_2HBK.permute(2, 1, 0, 3).contiguous()
        _, num_heads, _, half_dim = query_BH2E.shape
        num_keys, num_kept = keys_H2NE.shape[2], half_ids_BH2K.shape[3]
        # A winner's gradient goes to its row and its column. Many winners share a few rows, those
        # of the best ranks, since a pair wins only if all pairs above it win.
        grad_BH2K = torch.zeros_like(half_ranks_BH2K, dtype=grad_BHK.dtype)
        grad_BH2K.scatter_add_(3, half_ranks_BH2K, grad_BHK.unsqueeze(2).expand_as(grad_BH2K))
        counts_P = half_ranks_BH2K.amax(3).flatten() + 1
        ranks_K = torch.arange(num_kept, device=counts_P.device)
        used_M = (ranks_K < counts_P.unsqueeze(1)).flatten().nonzero().squeeze(1)
        weights_M = grad_BH2K.flatten()[used_M]
        offset_H2 = torch.arange(num_heads * 2, device=counts_P.device) * num_keys
        ids_M = (half_ids_BH2K + offset_H2.view(num_heads, 2, 1)).flatten()[used_M]

        grad_query = grad_keys = None
        if ctx.needs_input_grad[0]:
            starts_P1 = F.pad(counts_P.cumsum(0), (1, 0))
            flat_keys = keys_H2NE.reshape(-1, half_dim)
            grad_query = ragged_gather(flat_keys, ids_M, weights_M, starts_P1).view_as(query_BH2E)
        if ctx.needs_input_grad[1]:
            bags_M = used_M.div(num_kept, rounding_mode="floor")
            uses = (ids_M, bags_M, weights_M, query_BH2E.reshape(-1, half_dim))
            sums = dense_transposed_gather(*uses, num_heads * 2 * num_keys)
            grad_keys = sums.view_as(keys_H2NE).to(keys_H2NE.dtype)
        return grad_query, grad_keys, None


def _search(
    query_BH2E: Tensor, keys_H2NE: Tensor, num_kept: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Search chunk by chunk; also return the half ids and ranks for the backward pass."""
    num_queries, num_heads = query_BH2E.shape[:2]
    num_keys = keys_H2NE.shape[2]
    best = query_BH2E.new_empty(2, num_heads, num_queries, num_kept)
    half_ids = torch.empty(best.shape, dtype=torch.int64, device=best.device)
    for part in chunks(num_queries, num_heads * 2 * num_keys, best.device):
        top_H2BK, columns_H2BK = row_topk(half_scores(query_BH2E[part], keys_H2NE), num_kept)
        best[:, :, part] = top_H2BK.transpose(0, 1)
        half_ids[:, :, part] = columns_H2BK.transpose(0, 1)
    ids = half_ids.new_empty(num_queries, num_heads, num_kept)
    scores = best.new_empty(ids.shape)
    half_ranks = torch.empty_like(half_ids)
    for part in chunks(num_queries, num_heads * num_candidates(num_kept), best.device):
        pairs = best_pairs(best[:, :, part], half_ids[:, :, part], num_keys)
        ids[part] = pairs.ids_HBK.transpose(0, 1)
        scores[part] = pairs.scores_HBK.transpose(0, 1)
        half_ranks[:, :, part] = pairs.ranks_2HBK
    return ids, scores, half_ids, half_ranks


def chunks(num_queries: int, elements_a_query: int, device: torch.device) -> list[slice]:
    """Cut the queries into chunks with a limited number of elements."""
    budget = _CHUNK_ELEMENTS_CPU if device.type == "cpu" else _CHUNK_ELEMENTS_GPU
    step = max(1, budget // elements_a_query)
    return [slice(start, start + step) for start in range(0, num_queries, step)]


def half_scores(query_BH2E: Tensor, keys_H2NE: Tensor) -> Tensor:
    """Score every half key; returns halves_H2BN: a_i in the first half, b_j in the second."""
    query_GBE = query_BH2E.flatten(1, 2).transpose(0, 1)
    halves_GBN = torch.bmm(query_GBE, keys_H2NE.flatten(0, 1).transpose(1, 2))
    halves_H2BN: Tensor = halves_GBN.unflatten(0, keys_H2NE.shape[:2])
    return halves_H2BN


class Pairs(NamedTuple):
    """The best slots, and the ranks of their halves among the best half keys."""

    ids_HBK: Tensor
    scores_HBK: Tensor
    ranks_2HBK: Tensor


def best_pairs(best_2HBK: Tensor, columns_2HBK: Tensor, num_keys: int) -> Pairs:
    """Find the K best slots among the candidate pairs of the K best rows and columns.

    Args:
        best_2HBK: Scores of the best half keys, descending.
        columns_2HBK: Ids of these half keys.
        num_keys: N.
    """
    _, num_heads, num_queries, num_kept = best_2HBK.shape
    ranks_2C = _candidate_ranks_on(best_2HBK.device, num_kept)
    best_2PK = best_2HBK.flatten(1, 2)  # two dimensions, where `index_select` is fast
    pairs_PC = best_2PK[0].index_select(1, ranks_2C[0])
    pairs_PC += best_2PK[1].index_select(1, ranks_2C[1])
    scores_PK, winners_PK = row_topk(pairs_PC, num_kept)
    ranks_2PK = ranks_2C.index_select(1, winners_PK.flatten()).view(2, -1, num_kept)
    halves_2PK = columns_2HBK.flatten(1, 2).gather(2, ranks_2PK)
    shape = (num_heads, num_queries, num_kept)
    ids_PK = halves_2PK[0] * num_keys + halves_2PK[1]
    return Pairs(ids_PK.view(shape), scores_PK.view(shape), ranks_2PK.view(2, *shape))
