"""Time of the parts of a memory layer, and the memory bandwidth of its gather."""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from triptych.benchmarks.memory_layer_sides import LayerSides
from triptych.benchmarks.paired import Stopwatch, median_parts, seconds_of
from triptych.models.remember.index.product_key_search import (
    best_pairs,
    chunks,
    half_scores,
    product_key_topk,
)
from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.index.row_topk import row_topk
from triptych.models.remember.values.weighted_gather import (
    transposed_gather,
    weight_gradient,
    weighted_gather,
)

GATHER, WEIGHT_GRADIENT, ROW_GRADIENT = (
    "gather",
    "backward: gather, weights",
    "backward: gather, rows",
)


def breakdown(sides: LayerSides, rounds: int = 3) -> list[dict[str, Any]]:
    """Time each step of the layer, as `forward` and `backward` run them.

    Returns:
        Name, median seconds and share of the sum for each part.
    """
    medians = median_parts(partial(_forward_and_backward, sides), sides.x_BM.device, rounds)
    total = sum(medians.values())
    return [
        {"part": part, "median_s": median, "share": median / total}
        for part, median in medians.items()
    ]


def _forward_and_backward(sides: LayerSides, clock: Stopwatch) -> None:
    index, values_SD = sides.ours.index, sides.table.weight.detach()
    assert isinstance(index, ProductKeyIndex)
    query_BH2E = clock("query projection", sides.query).unflatten(-1, (2, -1))
    keys_H2NE, ids_BK = index.keys, sides.ids_BK
    num_keys, num_kept, num_heads = sides.sizes.num_keys, sides.ours.top_k, sides.sizes.num_heads
    with torch.no_grad():
        best_parts = []
        for part in chunks(len(query_BH2E), num_heads * 2 * num_keys, query_BH2E.device):
            halves = clock("scores", partial(half_scores, query_BH2E[part], keys_H2NE))
            best_parts.append(clock("half top-k", partial(row_topk, halves, num_kept)))
        best, columns = (
            torch.cat(parts, 2).transpose(0, 1).contiguous()
            for parts in zip(*best_parts, strict=True)
        )
        clock("candidates", lambda: best_pairs(best, columns, num_keys))
        weights_BK = sides.weights_BK.detach()
        scores_BHK = weights_BK.unflatten(1, (num_heads, -1))
        clock("softmax", lambda: scores_BHK.softmax(-1))
        clock(GATHER, lambda: weighted_gather(values_SD, ids_BK, weights_BK))

        grad_BD = sides.grad_BM
        grad_BK = clock(WEIGHT_GRADIENT, lambda: weight_gradient(grad_BD, values_SD, ids_BK))
        bags_M = torch.arange(len(ids_BK), device=ids_BK.device).repeat_interleave(ids_BK.shape[1])
        reads = (ids_BK.flatten(), bags_M, weights_BK.flatten())
        clock(ROW_GRADIENT, lambda: transposed_gather(*reads, grad_BD))
    leaf_BH2E = query_BH2E.detach().requires_grad_()
    _, scores = product_key_topk(leaf_BH2E, keys_H2NE, num_kept)
    grad_BHK = grad_BK.view_as(scores)
    lookup = (scores, (leaf_BH2E, keys_H2NE), grad_BHK)
    grad_query, _ = clock("backward: lookup", lambda: torch.autograd.grad(*lookup))
    leaves = (sides.x_BM, *sides.ours.query.parameters())
    projection = (query_BH2E, leaves, grad_query)
    clock("backward: query projection", lambda: torch.autograd.grad(*projection))


def bandwidth(
    sides: LayerSides, parts: list[dict[str, Any]], copy_gb_per_s: float
) -> list[dict[str, Any]]:
    """Compute the bytes that the gather and its transposes move, and their bandwidth.

    Each use of a row counts, though a cache may serve some. The row gradient counts only its inputs
    (output gradients, ids, weights) and its output (the rows).
    """
    ids_BK = sides.ids_BK
    num_bags, uses = len(ids_BK), ids_BK.numel()
    num_rows = ids_BK.unique().numel()
    row = sides.sizes.width * sides.table.weight.element_size()
    read = uses * (ids_BK.element_size() + sides.weights_BK.element_size())
    moved = {
        GATHER: uses * row + read + num_bags * row,
        WEIGHT_GRADIENT: uses * row + read + num_bags * row,
        ROW_GRADIENT: num_bags * row + read + num_rows * (row + ids_BK.element_size()),
    }
    seconds = {part["part"]: part["median_s"] for part in parts}
    return [
        {
            "part": part,
            "bytes": num_bytes,
            "gb_per_s": num_bytes / seconds[part] / 1e9,
            "share_of_copy": num_bytes / seconds[part] / 1e9 / copy_gb_per_s,
        }
        for part, num_bytes in moved.items()
    ]


def copy_bandwidth(device: torch.device, num_bytes: int = 1 << 28, rounds: int = 7) -> float:
    """Measure the bandwidth of a large copy in GB/s, reads plus writes: the best of the rounds."""
    source, target = (torch.ones(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> Tensor:
        return target.copy_(source)

    return 2 * num_bytes / min(seconds_of(copy, device) for _ in range(rounds)) / 1e9
