"""How fast is a memory layer against product-key-memory, EmbeddingBag and the replaced FFN?

`python -m benchmarks.memory_layer [--quick] [--out FILE]`

4,096 tokens of width 256 pass through a layer with 4 heads, k = 32, and 65,536 or 1,048,576 slots.
`product-key-memory` computes the same function with the same weights, which a check verifies. Its
`dim_head` of 256 is the width of half a query, so our `key_dim` is 512. Its LayerNorm of the
queries is removed. Our backward forms the compact gradient of the rows that were read; the dense
gradient of the peer is timed as well. The FFN is the one that the layer replaces in a plain
transformer of this width: 256 to 1,024 and back.

Freeing gradients is not timed for any side. Peak memory counts tensors; our top-k also uses some
megabytes of NumPy arrays. On a CPU all sides use transparent huge pages, unless
`THP_MEM_ALLOC_ENABLE=0` is set.
"""

import os

# Set before torch is imported. Without huge pages, page faults of new large tensors dominate.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from triptych.benchmarks.memory_layer_parts import bandwidth, breakdown, copy_bandwidth
from triptych.benchmarks.memory_layer_sides import PEER, LayerSides, LayerSizes
from triptych.benchmarks.paired import PairedTimer
from triptych.benchmarks.report import (
    Check,
    Report,
    at_least,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)
from triptych.models.remember.index.product_key_search import half_scores
from triptych.models.remember.index.product_keys import ProductKeyIndex

# Shapes: H heads, N half keys, K kept, S slots

LEAST_SPEEDUP = 1.5


def agreement(sides: LayerSides) -> Check:
    """Check the share of tokens with the output of the peer, to 1e-4 of the largest output.

    The two sum in a different order, so the last slot of the top k may differ for a few tokens.
    """
    with torch.no_grad():
        ours = sides.ours(sides.x_BM)
        theirs = sides.peer(sides.x_BM.unsqueeze(0)).squeeze(0)
    equal = (ours - theirs).abs().amax(1) < 1e-4 * theirs.abs().max()
    return at_least(equal.float().mean().item(), 0.999)


def brute_force(sides: LayerSides, num_queries: int = 64) -> tuple[Check, Check]:
    """Check the shares of ids and scores that equal those of a search over all slots."""
    index, num_kept = sides.ours.index, sides.ours.top_k
    assert isinstance(index, ProductKeyIndex)
    with torch.no_grad():
        query_BHD = sides.query()[:num_queries]
        ids_BHK, scores_BHK = index.lookup(query_BHD, num_kept)
        halves_H2BN = half_scores(query_BHD.unflatten(-1, (2, -1)), index.keys)
        same_ids = same_scores = 0
        for number in range(len(query_BHD)):
            rows_HN, columns_HN = halves_H2BN[:, 0, number], halves_H2BN[:, 1, number]
            every_HS = (rows_HN.unsqueeze(2) + columns_HN.unsqueeze(1)).flatten(1)
            best_HK, slots_HK = every_HS.topk(num_kept)
            same_ids += int((ids_BHK[number] == slots_HK).sum())
            same_scores += int((scores_BHK[number] == best_HK).sum())
    total = ids_BHK.numel()
    return at_least(same_ids / total, 1.0), at_least(same_scores / total, 1.0)


def compare(report: Report, timer: PairedTimer, sizes: LayerSizes) -> None:
    """Add all comparisons, parts and checks at one number of slots."""
    sides, slots = LayerSides(sizes, timer.device), sizes.num_slots
    report.add(timer.compare("layer forward", slots, sides.layer_forward()))
    report.add(timer.compare("layer forward+backward", slots, sides.layer_backward()))
    report.add(timer.compare("gather forward", slots, sides.gather_forward()))
    report.add(timer.compare("gather forward+backward", slots, sides.gather_backward()))
    parts = breakdown(sides)
    report.more["breakdown"] += [{"size": slots, **part} for part in parts]
    moved = bandwidth(sides, parts, report.more["copy_gb_per_s"])
    report.more["bandwidth"] += [{"size": slots, **part} for part in moved]
    ids, scores = brute_force(sides)
    speedup = report.ratios[f"{PEER} forward+backward@{slots}"]
    report.checks |= {
        f"speed-up over {PEER}, forward+backward@{slots}": at_least(speedup, LEAST_SPEEDUP),
        f"ids as over all slots, 64 queries@{slots}": ids,
        f"scores as over all slots, 64 queries@{slots}": scores,
        f"tokens with the output of {PEER}@{slots}": agreement(sides),
    }


def print_parts(more: dict[str, Any], console: Console) -> None:
    """Print the breakdown and the bandwidth."""
    moved = {(part["size"], part["part"]): part for part in more["bandwidth"]}
    table = Table("part of the memory layer", "slots", "median", "share", "GB/s", "of copying")
    for part in more["breakdown"]:
        speed = moved.get((part["size"], part["part"]))
        table.add_row(
            part["part"],
            f"{part['size']:,}",
            f"{part['median_s'] * 1e3:.1f} ms",
            f"{part['share']:.0%}",
            f"{speed['gb_per_s']:.1f}" if speed else "",
            f"{speed['share_of_copy']:.0%}" if speed else "",
        )
    console.print(table)
    console.print(f"copying moves {more['copy_gb_per_s']:.1f} GB/s, reads and writes together")


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How fast is a memory layer against its peers?")
    parser.add_argument(
        "--num-keys", type=int, nargs="+", default=[256, 1024], help="half keys; slots: squared"
    )
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    more = {"copy_gb_per_s": copy_bandwidth(device), "breakdown": [], "bandwidth": []}
    report = Report("memory_layer", describe_device(device), more=more)
    min_rounds, max_rounds, budget_s = (3, 7, 4.0) if options.quick else (10, 30, 30.0)
    with PairedTimer(device, min_rounds, max_rounds, budget_s) as timer:
        for num_keys in options.num_keys:
            compare(report, timer, LayerSizes(num_keys))
    console = wide_console()
    report.print(console)
    print_parts(report.more, console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
