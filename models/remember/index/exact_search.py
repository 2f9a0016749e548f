"""Exhaustive search for the best keys: the reference, and the search of small tables."""

import torch
from torch import Tensor

from triptych.models.remember.index.row_topk import row_topk

# Shapes: B queries, D key width, K kept, S slots
# Scores in memory at once. Chunks of few queries would read all keys too often.
_CHUNK_ELEMENTS_CPU = 1 << 22
_CHUNK_ELEMENTS_GPU = 1 << 28
_LEAST_QUERIES = 64


def exact_topk(query_BD: Tensor, keys_SD: Tensor, active_S: Tensor, num_kept: int) -> Tensor:
    """Find the K active keys with the highest dot products, for one head; no gradient.

    Args:
        query_BD: Queries, in the dtype of the keys.
        keys_SD: Keys.
        active_S: bool, True for slots that may be found; at least K of them.
        num_kept: K.

    Returns:
        ids_BK: int64, best first.
    """
    on_cpu = query_BD.device.type == "cpu"
    budget = _CHUNK_ELEMENTS_CPU if on_cpu else _CHUNK_ELEMENTS_GPU
    step = max(_LEAST_QUERIES, budget // len(keys_SD))
    hidden_S = None if active_S.all() else ~active_S
    ids = torch.empty(len(query_BD), num_kept, dtype=torch.int64, device=query_BD.device)
    with torch.no_grad():
        for start in range(0, len(query_BD), step):
            part = slice(start, start + step)
            scores_BS = query_BD[part] @ keys_SD.T
            if hidden_S is not None:
                scores_BS.masked_fill_(hidden_S, -torch.inf)
            ids[part] = row_topk(scores_BS, num_kept)[1]
    return ids
