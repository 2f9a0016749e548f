"""Where a memory layer's time goes, and how near its gather comes to the memory's bandwidth."""

from collections import defaultdict
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from triptych.benchmarks.memory_layer_sides import LayerSides
from triptych.benchmarks.paired import quantile, seconds_of
from triptych.models.remember.index.product_key_search import (
    best_pairs,
    chunks,
    half_scores,
    product_key_topk,
)
from triptych.models.remember.index.row_topk import row_topk
from triptych.models.remember.values.weighted_gather import (
    transposed_gather,
    weight_gradient,
    weighted_gather,
)

Returned = TypeVar("Returned")

GATHER, WEIGHT_GRADIENT, ROW_GRADIENT = (
    "gather",
    "backward: gather, weights",
    "backward: gather, rows",
)


class _Stopwatch:
    """Adds up the seconds of each part."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.seconds: dict[str, float] = defaultdict(float)

    def __call__(self, part: str, run: Callable[[], Returned]) -> Returned:
        kept: list[Returned] = []
        self.seconds[part] += seconds_of(lambda: kept.append(run()), self.device)
        return kept.pop()


def breakdown(sides: LayerSides, rounds: int = 3) -> list[dict[str, Any]]:
    """Time the layer's steps one by one, as `forward` and `backward` run them.

    Returns:
        For each part its name, median seconds and share of the sum.
    """
    runs = []
    for _ in range(rounds):
        clock = _Stopwatch(sides.x_BM.device)
        _forward_and_backward(sides, clock)
        runs.append(clock.seconds)
    medians = {part: quantile([run[part] for run in runs], 0.5) for part in runs[0]}
    total = sum(medians.values())
    return [
        {"part": part, "median_s": median, "share": median / total}
        for part, median in medians.items()
    ]


def _forward_and_backward(sides: LayerSides, clock: _Stopwatch) -> None:
    index, values_SD = sides.ours.index, sides.table.weight.detach()
    query_BH2E = clock("query projection", sides.query).unflatten(-1, (2, -1))
    keys_H2NE, ids_BK = index.keys, sides.ids_BK
    num_keys, num_kept, num_heads = sides.sizes.num_keys, sides.ours.top_k, sides.sizes.num_heads
    with torch.no_grad():
        best_parts = []
        for part in chunks(len(query_BH2E), num_heads * 2 * num_keys, query_BH2E.device):
            query = query_BH2E[part]
            halves = clock("scores", lambda query=query: half_scores(query, keys_H2NE))
            best_parts.append(clock("half top-k", lambda halves=halves: row_topk(halves, num_kept)))
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
    """Bytes that the gather and its transposes must move, and how fast they move them.

    Each use of a row counts, though a cache may serve some; for the row gradient only what it
    must read (output gradients, ids, weights) and write (the rows) counts.
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
    """Bytes read and written per second by a large copy, in GB/s: the best of some rounds."""
    source, target = (torch.ones(num_bytes, dtype=torch.uint8, device=device) for _ in range(2))

    def copy() -> Tensor:
        return target.copy_(source)

    return 2 * num_bytes / min(seconds_of(copy, device) for _ in range(rounds)) / 1e9
