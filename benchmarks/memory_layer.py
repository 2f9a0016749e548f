"""How fast is a memory layer, against product-key-memory, EmbeddingBag and the FFN it replaces?

`python -m benchmarks.memory_layer [--quick] [--out FILE]`

4,096 tokens of width 256 go through a layer with 4 heads, k = 32, 65,536 or 1,048,576 slots.
`product-key-memory` is set to compute the same function with the same weights: its `dim_head` of
256 is the width of each half of a query, so our `key_dim` is 512, and its LayerNorm of the queries
is taken out. That the two agree is one of the checks. Our backward gives a compact gradient of the
rows that were read; the dense gradient, as every peer forms it, is timed beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from rich.console import Console
from torch import Tensor, nn

from benchmarks.memory_layer_parts import bandwidth_table, breakdown, copy_bandwidth
from benchmarks.paired import PairedTimer, Side
from benchmarks.report import (
    Check,
    Report,
    at_least,
    benchmark_parser,
    describe_device,
    prepare_device,
)
from models.memory_layer import MemoryLayer
from models.product_key_search import half_scores
from models.product_keys import ProductKeyIndex
from models.value_table import ValueTable

# Shapes: B tokens, M width, H heads, E half query width, N half keys, K kept, S slots

LEAST_SPEEDUP = 1.5
PEER = "product-key-memory"


@dataclass(frozen=True)
class Sizes:
    """Of one comparison."""

    num_keys: int
    num_tokens: int = 4096
    width: int = 256
    num_heads: int = 4
    top_k: int = 32
    half_dim: int = 256

    @property
    def num_slots(self) -> int:
        """S."""
        return self.num_keys**2


@dataclass
class Contestants:
    """Ours and the peers, with the same weights, and their input."""

    sizes: Sizes
    device: torch.device
    ours: MemoryLayer = field(init=False)
    peer: nn.Module = field(init=False)
    ffn: nn.Module = field(init=False)

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        sizes = self.sizes
        with self.device:
            index = ProductKeyIndex(sizes.num_keys, sizes.num_heads, 2 * sizes.half_dim)
            values = ValueTable(sizes.num_slots, sizes.width, "selected_rows")
            self.ours = MemoryLayer(sizes.width, sizes.top_k, index, values)
            self.ffn = nn.Sequential(
                nn.Linear(sizes.width, 4 * sizes.width),
                nn.GELU(),
                nn.Linear(4 * sizes.width, sizes.width),
            )
            self.x_BM = torch.randn(sizes.num_tokens, sizes.width, requires_grad=True)
            self.grad_BM = torch.randn(sizes.num_tokens, sizes.width)
        self.peer = product_key_memory(self.ours)
        with torch.no_grad():
            query_BHD = self.ours.query(self.x_BM).unflatten(-1, (sizes.num_heads, -1))
            ids_BHK, scores_BHK = index.lookup(query_BHD, sizes.top_k)
        self.ids_BK = ids_BHK.flatten(1)
        self.weights_BK = scores_BHK.softmax(-1).flatten(1).requires_grad_()

    def layer_sides(self, backward: bool) -> list[Side]:
        """Whole layers; ours first."""
        table = self.ours.values
        name = "forward+backward" if backward else "forward"
        if not backward:
            return [
                self._side(f"memory layer {name}", lambda: self.ours(self.x_BM)),
                self._side(f"{PEER} {name}", lambda: self.peer(self.x_BM.unsqueeze(0))),
                self._side(f"dense FFN {name}", lambda: self.ffn(self.x_BM)),
            ]
        return [
            self._compact(f"memory layer {name}", lambda: self.ours(self.x_BM)),
            self._dense(f"memory layer {name}, dense gradient", lambda: self.ours(self.x_BM)),
            self._backward(
                f"{PEER} {name}", lambda: self.peer(self.x_BM.unsqueeze(0)).squeeze(0), table
            ),
            self._backward(f"dense FFN {name}", lambda: self.ffn(self.x_BM), table),
        ]

    def gather_sides(self, backward: bool) -> list[Side]:
        """The weighted gather alone; ours first."""
        table = self.ours.values

        def bag(sparse: bool) -> Callable[[], Tensor]:
            peer = nn.EmbeddingBag.from_pretrained(
                table.weight, freeze=False, mode="sum", sparse=sparse
            )
            self._more_parameters.append(peer.weight)
            return lambda: peer(self.ids_BK, per_sample_weights=self.weights_BK)

        def ours() -> Tensor:
            return table(self.ids_BK, self.weights_BK)

        name = "forward+backward" if backward else "forward"
        if not backward:
            return [
                self._side(f"gather {name}", ours),
                self._side(f"EmbeddingBag {name}", bag(sparse=False)),
            ]
        return [
            self._compact(f"gather {name}", ours),
            self._dense(f"gather {name}, dense gradient", ours),
            self._backward(f"EmbeddingBag dense {name}", bag(sparse=False), table),
            self._backward(f"EmbeddingBag sparse {name}", bag(sparse=True), table),
        ]

    _more_parameters: list[nn.Parameter] = field(default_factory=list)

    def _release(self) -> None:
        modules = (self.ours, self.ours.values, self.peer, self.ffn)
        leaves = [parameter for module in modules for parameter in module.parameters()]
        for leaf in (*leaves, *self._more_parameters, self.x_BM, self.weights_BK):
            leaf.grad = None
        self.ours.values.clear_reads()

    def _side(self, name: str, forward: Callable[[], Tensor]) -> Side:
        def run() -> Tensor:
            with torch.no_grad():
                return forward()

        return Side(name, run, self._release)

    def _backward(self, name: str, forward: Callable[[], Tensor], table: ValueTable) -> Side:
        return Side(name, lambda: forward().backward(self.grad_BM), self._release)

    def _compact(self, name: str, forward: Callable[[], Tensor]) -> Side:
        table = self.ours.values

        def run() -> object:
            forward().backward(self.grad_BM)
            return table.row_gradient()

        return Side(name, run, self._release)

    def _dense(self, name: str, forward: Callable[[], Tensor]) -> Side:
        table = self.ours.values

        def run() -> None:
            table.gradient = "dense"
            forward().backward(self.grad_BM)
            table.gradient = "selected_rows"

        return Side(name, run, self._release)


def product_key_memory(ours: MemoryLayer) -> nn.Module:
    """The peer with our weights: the same function of the input.

    Raises:
        ValueError: if the package is not installed.
    """
    try:
        from product_key_memory import PKM
    except ImportError as error:
        raise ValueError(
            "product-key-memory is not installed: pip install product-key-memory (extra `bench`)"
        ) from error
    index = ours.index
    assert isinstance(index, ProductKeyIndex)
    width, half_dim = ours.query.in_features, index.query_dim // 2
    with torch.device("meta"):
        peer = PKM(
            dim=width,
            heads=index.num_heads,
            num_keys=index.num_keys,
            topk=ours.top_k,
            dim_head=half_dim,
        )
    peer.norm = nn.Identity()  # ours has no LayerNorm of the queries either
    weight = ours.query.weight.detach().unflatten(0, (index.num_heads, 2, half_dim))
    peer.to_queries.weight = nn.Parameter(weight.transpose(0, 1).reshape(-1, width))
    keys_HN2E = index.keys.detach().transpose(1, 2).contiguous()
    peer.keys = nn.Parameter(keys_HN2E)
    # One table in memory, with a gradient for each.
    peer.values.weight = nn.Parameter(ours.values.weight.detach())
    return peer


def agreement(contestants: Contestants) -> Check:
    """Share of tokens whose output equals the peer's to 1e-4 of the outputs' size.

    The two sum in another order, so a slot at the edge of the top k may differ in a rare token.
    """
    with torch.no_grad():
        ours = contestants.ours(contestants.x_BM)
        theirs = contestants.peer(contestants.x_BM.unsqueeze(0)).squeeze(0)
    equal = (ours - theirs).abs().amax(1) < 1e-4 * theirs.abs().max()
    return at_least(equal.float().mean().item(), 0.999)


def brute_force(contestants: Contestants, num_queries: int = 64) -> tuple[Check, Check]:
    """Share of ids and of scores identical to those of a search over every slot."""
    sizes, index = contestants.sizes, contestants.ours.index
    assert isinstance(index, ProductKeyIndex)
    with torch.no_grad():
        query = contestants.ours.query(contestants.x_BM[:num_queries])
        query_BHD = query.unflatten(-1, (sizes.num_heads, -1))
        ids_BHK, scores_BHK = index.lookup(query_BHD, sizes.top_k)
        halves_H2BN = half_scores(query_BHD.unflatten(-1, (2, -1)), index.keys)
        same_ids = same_scores = 0
        for number in range(num_queries):
            rows_HN, columns_HN = halves_H2BN[:, 0, number], halves_H2BN[:, 1, number]
            every_HS = (rows_HN.unsqueeze(2) + columns_HN.unsqueeze(1)).flatten(1)
            best_HK, slots_HK = every_HS.topk(sizes.top_k)
            same_scores += int((scores_BHK[number] == best_HK).sum())
            same_ids += int((ids_BHK[number] == slots_HK).sum())
    total = ids_BHK.numel()
    return at_least(same_ids / total, 1.0), at_least(same_scores / total, 1.0)


def compare(report: Report, timer: PairedTimer, sizes: Sizes, copied_gb_per_s: float) -> None:
    """All comparisons at one number of slots."""
    contestants = Contestants(sizes, timer.device)
    slots = sizes.num_slots
    report.add(timer.compare("layer forward", slots, contestants.layer_sides(False)))
    report.add(timer.compare("layer forward+backward", slots, contestants.layer_sides(True)))
    report.add(timer.compare("gather forward", slots, contestants.gather_sides(False)))
    report.add(timer.compare("gather forward+backward", slots, contestants.gather_sides(True)))
    parts = breakdown(
        timer,
        contestants.ours,
        contestants.x_BM,
        contestants.grad_BM,
    )
    report.more["breakdown"] += [{"size": slots, **part} for part in parts]
    report.more["bandwidth"] += bandwidth_table(
        slots, sizes.width, contestants.ids_BK, parts, copied_gb_per_s
    )
    key = f"{PEER} forward+backward@{slots}"
    ids, scores = brute_force(contestants)
    report.checks |= {
        f"{PEER} over ours, forward+backward@{slots}": at_least(report.ratios[key], LEAST_SPEEDUP),
        f"ids as over all slots, 64 queries@{slots}": ids,
        f"scores as over all slots, 64 queries@{slots}": scores,
        f"tokens with the output of {PEER}@{slots}": agreement(contestants),
    }


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print it and write its JSON."""
    parser = benchmark_parser(__doc__.splitlines()[0])
    parser.add_argument("--num-keys", type=int, nargs="+", default=[256, 1024], help="half keys")
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    report = Report("memory_layer", describe_device(device))
    copied = copy_bandwidth(device)
    report.more = {"copy_gb_per_s": copied, "breakdown": [], "bandwidth": []}
    rounds = (3, 7, 5.0) if options.quick else (10, 30, 40.0)
    with PairedTimer(device, *rounds) as timer:
        for num_keys in options.num_keys:
            compare(report, timer, Sizes(num_keys), copied)
    console = Console()
    report.print(console)
    print_parts(report, console)
    if options.out is not None:
        report.write(options.out)
        console.print(f"written to {options.out}")
    return report
