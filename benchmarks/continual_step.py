"""How fast is a step of sparse memory fine-tuning against training the whole table?

`python -m benchmarks.continual_step [--quick] [--out FILE]`

A batch of 64 texts of 64 tokens reads a memory with 4 heads, k = 32, values of width 256, and
65,536 or 1,048,576 slots. The 500 slots with the best TF-IDF scores are trained. Our side counts
the reads, scores the slots, forms the gradient of these rows and updates them, as
`SparseMemoryFinetuning` does. The peers are the masking trick of the paper with dense SGD
(`mem * mask + mem.detach() - (mem * mask).detach()`), and a dense gradient with dense AdamW. All
sides read by the same `embedding_bag`. The peers receive the selected rows, so they neither count
nor score.

The first comparison is the table alone: forward, backward, update. Its reads are uniform, which is
our worst case, since real texts read fewer distinct slots. The second is the step of a small causal
language model with that memory and its own reads. It is repeated on the same batch, as in a visit
to a fact, where the frozen part below the memory is not recomputed. Peak memory counts tensors
without the table itself.

All sides use the default optimizers and allocator of torch, as in a training run. Two options help
the dense peers: AdamW in one pass (`fused=True`) is also reported, and `THP_MEM_ALLOC_ENABLE=1`
turns on huge pages for all sides, which avoids page faults of large new tensors.
"""

from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych.benchmarks.continual_step_sides import (
    DENSE,
    FUSED,
    MASKING,
    StepSides,
    StepSizes,
    title,
)
from triptych.benchmarks.paired import PairedTimer, Timing, time_ratio
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

LEAST_OVER_MASKING, LEAST_OVER_DENSE = 40.0, 30.0
MOST_OF_STATE, MOST_OF_TABLE, MOST_OF_SMALL = 0.001, 1.2, 1.5


def compare(report: Report, timer: PairedTimer, sides: StepSides) -> list[Timing]:
    """Time all sides on the table and in the whole model; return our timings on the table."""
    slots = sides.sizes.num_slots
    masking = timer.compare("table", slots, [sides.table_step("sgd"), sides.masked_table_step()])
    adamw = [sides.table_step("adamw"), *(sides.dense_table_step(name) for name in (DENSE, FUSED))]
    dense = timer.compare("table", slots, adamw)
    report.more["state_bytes"][str(slots)] = sides.state_bytes()
    again = sides.repeated_model_step("adamw")
    model = [sides.model_step("adamw"), again, sides.model_step("sgd"), sides.dense_model_step()]
    report.add(_called("table", masking))
    report.add(_called("table", dense))
    report.add(_called("whole model", timer.compare("whole model", slots, model)))
    report.more["breakdown"] += [{"size": slots, **part} for part in sides.breakdown()]
    return [masking[0], dense[0]]


def _called(what: str, timings: list[Timing]) -> list[Timing]:
    return [replace(timing, name=f"{what}: {timing.name}") for timing in timings]


def promise(report: Report, sides: StepSides, ours: list[Timing]) -> None:
    """Add the checks at the larger number of slots, except the one that needs both sizes."""
    slots = sides.sizes.num_slots
    weight, state = sides.table.weight, report.more["state_bytes"][str(slots)]
    table_bytes = weight.numel() * weight.element_size()
    peak = max(timing.peak_bytes for timing in ours)
    report.checks |= {
        f"speed-up over {MASKING}@{slots}": at_least(
            report.ratios[f"table: {MASKING}@{slots}"], LEAST_OVER_MASKING
        ),
        f"speed-up over {DENSE}@{slots}": at_least(
            report.ratios[f"table: {DENSE}@{slots}"], LEAST_OVER_DENSE
        ),
        f"optimizer state, share of dense AdamW's@{slots}": at_most(
            state[title("adamw")] / state[DENSE], MOST_OF_STATE
        ),
        f"table and peak memory, over the table@{slots}": at_most(
            1 + peak / table_bytes, MOST_OF_TABLE
        ),
    }


def growth(report: Report, timer: PairedTimer, small: StepSides, large: StepSides) -> list[Timing]:
    """Compare the time of a table step at both sizes.

    Returns:
        Our timings at the larger size. Their first step is the very first one, which creates the
        optimizer state.
    """
    first = []
    for name in ("sgd", "adamw"):
        pair = timer.compare("both sizes", 0, [small.table_step(name), large.table_step(name)])
        few, many = small.sizes.num_slots, large.sizes.num_slots
        report.checks[f"time of {title(name)}, {many} slots over {few}"] = at_most(
            time_ratio(pair[1], pair[0]), MOST_OF_SMALL
        )
        first.append(pair[1])
    return first


def print_parts(report: Report, console: Console) -> None:
    """Print the breakdown and the sizes of the optimizer states."""
    table = Table("part of our step of the table, adamw", "slots", "median")
    for part in report.more["breakdown"]:
        table.add_row(part["part"], f"{part['size']:,}", f"{part['median_s'] * 1e3:.1f} ms")
    console.print(table)
    table = Table("state of the optimizer", "slots", "MiB")
    for slots, states in report.more["state_bytes"].items():
        for name, held in states.items():
            table.add_row(name, f"{int(slots):,}", f"{held / 2**20:,.2f}")
    console.print(table)


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How fast is a step of sparse memory fine-tuning?")
    parser.add_argument(
        "--num-keys", type=int, nargs=2, default=[256, 1024], help="half keys; slots: squared"
    )
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    more: dict[str, Any] = {"state_bytes": {}, "breakdown": []}
    report = Report("continual_step", describe_device(device), more=more)
    small, large = (StepSides(StepSizes(num_keys), device) for num_keys in options.num_keys)
    rounds = (2, 3, 2.0) if options.quick else (5, 15, 60.0)
    # A new process needs about a dozen steps to reach full speed on its large table.
    many_rounds = (40, 40, 0.0) if options.quick else (100, 100, 0.0)
    with PairedTimer(device, *many_rounds) as timer:
        first = growth(report, timer, small, large)
    with PairedTimer(device, *rounds) as timer:
        compare(report, timer, small)
        promise(report, large, first + compare(report, timer, large))
    console = wide_console()
    report.print(console)
    print_parts(report, console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
