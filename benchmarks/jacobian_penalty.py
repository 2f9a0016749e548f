"""What does a penalty on the Jacobian of a decoder cost against `vmap(jacrev)`?

`python -m benchmarks.jacobian_penalty [--quick] [--out FILE]`

The benchmark times forward and backward of the penalty alone. The decoder has one hidden layer with
twice as many units as latents, and twelve times as many outputs as latents: up to 1,024 latents and
12,288 outputs (three agents of 4,096). The peer is the method of the public reproductions of
ThoughtComm: the whole Jacobian by `torch.func.vmap(jacrev)`, and autograd through it. Ours:

    closed form       the same value and gradient, from the weights of the layers
    forward mode      the same for any decoder; reported without a check
    columns           unbiased, 32 columns of each sample
    blocks            unbiased, 1,024 rows and at most 1,024 columns, in closed form
    probes            the group norm, from one backward pass per agent

All sides see the same latents. Decoders are trained on batches, so a batch of 8 is the check: every
method of ours has to be 10 times as fast as the peer. A single latent is reported beside it: there
the peer does exactly 9 times the operations of the closed form, which are three matrix products, so
no exact method can reach 10, and only the sampled methods are checked. The largest size runs with
one latent, since a batch of the peer would not fit into memory; the memory of our methods is
measured with 8.
`--quick` runs the largest size without the peer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.func import jacrev, vmap

from triptych.benchmarks.paired import PairedTimer, Side, time_ratio
from triptych.benchmarks.report import (
    Report,
    at_least,
    at_most,
    benchmark_parser,
    describe_device,
    prepare_device,
    run_main,
    wide_console,
)
from triptych.models.commune.perceptron import Perceptron
from triptych.objectives.commune.jacobian_penalty import JacobianPenalty

LEAST_SPEED_UP, MOST_BYTES = 10.0, 4 * 2**30
# Operations of the peer over those of the closed form, for one latent.
ARITHMETIC_BOUND = 9
OUTPUTS_PER_LATENT, NUM_AGENTS = 12, 3
CLOSED, FORWARD, COLUMNS, BLOCKS, PROBES, PEER = (
    "closed form",
    "forward mode",
    "columns",
    "blocks",
    "probes",
    "vmap(jacrev)",
)
PENALTIES = {
    CLOSED: JacobianPenalty("sum"),
    FORWARD: JacobianPenalty("sum", estimator="exact"),
    COLUMNS: JacobianPenalty("sum", estimator="columns", num_columns=32),
    BLOCKS: JacobianPenalty("sum", estimator="blocks", num_columns=1024, num_rows=1024),
    PROBES: JacobianPenalty("sum", norm="group", estimator="probes"),
}


@dataclass
class PenaltySides:
    """A decoder, latents, and all ways to compute the penalty.

    Args:
        num_latents: Width of the latents; all other sizes follow from it.
        batch_size: Number of latents.
        device: Device of decoder and latents.
    """

    num_latents: int
    batch_size: int
    device: torch.device

    def __post_init__(self) -> None:
        torch.manual_seed(0)
        self.state_sizes = [OUTPUTS_PER_LATENT // NUM_AGENTS * self.num_latents] * NUM_AGENTS
        self.num_outputs = sum(self.state_sizes)
        self.decoder = Perceptron(
            self.num_latents, self.num_outputs, (2 * self.num_latents,), "gelu"
        ).to(self.device)
        self.latents = torch.randn(self.batch_size, self.num_latents, device=self.device)

    def ours(self, name: str) -> Side:
        """Return forward and backward of one of our penalties."""
        penalty = partial(PENALTIES[name], self.decoder, state_sizes=self.state_sizes)
        return self._side(name, penalty)

    @property
    def title(self) -> str:
        """Name of the batch."""
        return f"batch {self.batch_size}"

    def peer(self) -> Side:
        """Return forward and backward through the whole Jacobian in reverse mode."""

        def penalty(latents_BZ: Tensor) -> Tensor:
            jacobian_BHZ: Tensor = vmap(jacrev(self.decoder))(latents_BZ)
            return jacobian_BHZ.abs().sum((1, 2)).mean()

        return self._side(PEER, penalty)

    def _side(self, name: str, penalty: Callable[..., Tensor]) -> Side:
        def run() -> Tensor:
            value = penalty(latents_BZ=self.latents)
            value.backward()
            return value.detach()

        return Side(f"{name}, {self.title}", run, self.decoder.zero_grad)


def compare(report: Report, timer: PairedTimer, sides: PenaltySides) -> None:
    """Time all our methods and the peer."""
    names = list(PENALTIES)
    timings = timer.compare("penalty", sides.num_outputs, [*map(sides.ours, names), sides.peer()])
    report.rows += [timing.row() for timing in timings]
    *ours, peer = timings
    for timing in ours:
        key = f"{PEER} over {timing.name}@{timing.size}"
        report.ratios[key] = time_ratio(peer, timing)
        report.memory_ratios[key] = peer.peak_bytes / max(1, timing.peak_bytes)


def promise_speed(report: Report, sides: PenaltySides) -> None:
    """Add the checks against the peer at one size; forward mode has no bound.

    For one latent the closed form is bound by the arithmetic, and is no check.
    """
    sampled = (COLUMNS, BLOCKS, PROBES)
    for name in sampled if sides.batch_size == 1 else (CLOSED, *sampled):
        key = f"{PEER} over {name}, {sides.title}@{sides.num_outputs}"
        report.checks[key] = at_least(report.ratios[key], LEAST_SPEED_UP)


def promise_memory(report: Report, timer: PairedTimer, sides: PenaltySides) -> None:
    """Add the peak memory of our methods at one size and batch, without the peer."""
    names = [CLOSED, COLUMNS, BLOCKS, PROBES]
    known = {(row["name"], row["size"]) for row in report.rows}
    ours = [sides.ours(name) for name in names]
    for timing in timer.compare("memory", sides.num_outputs, ours):
        if (timing.name, timing.size) not in known:
            report.rows.append(timing.row())
        report.checks[f"peak bytes of {timing.name}@{timing.size}"] = at_most(
            timing.peak_bytes, MOST_BYTES
        )


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("What does a penalty on the Jacobian of a decoder cost?")
    parser.add_argument(
        "--num-latents", type=int, nargs="+", default=[64, 256, 1024], help="sizes, ascending"
    )
    parser.add_argument("--batch", type=int, default=8, help="batch size, in addition to 1")
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    report = Report("jacobian_penalty", describe_device(device))
    sizes = options.num_latents
    with_peer = sizes[:-1] if options.quick and len(sizes) > 1 else sizes
    rounds = (2, 5, 2.0) if options.quick else (3, 20, 20.0)
    with PairedTimer(device, *rounds) as timer:
        for num_latents in with_peer:
            # At the largest size a batch of the peer would exceed the memory of the machine.
            for batch in (1,) if num_latents == sizes[-1] else (1, options.batch):
                sides = PenaltySides(num_latents, batch, device)
                compare(report, timer, sides)
                if num_latents == with_peer[-1]:
                    promise_speed(report, sides)
    with PairedTimer(device, 1, 1, 0.0) as timer:
        batch = 1 if options.quick else options.batch
        promise_memory(report, timer, PenaltySides(sizes[-1], batch, device))
    console = wide_console()
    report.print(console)
    for key, ratio in report.ratios.items():
        console.print(f"{key}: {ratio:.1f}x the time, {report.memory_ratios[key]:.1f}x the memory")
    console.print(
        f"{CLOSED}, batch 1: the peer does {ARITHMETIC_BOUND} times the operations, the most that "
        "an exact method can save; not a check"
    )
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
