"""How fast is a step of sparse memory finetuning, against learning in the whole table?

`python -m benchmarks.continual_step [--quick] [--out FILE]`

A batch of 64 texts of 64 tokens reads a memory of 4 heads, k = 32, values of width 256, with 65,536
or 1,048,576 slots; the 500 slots that score best by TF-IDF learn. Ours counts the reads, scores the
slots, forms the gradient of these rows and updates them, as
`SparseMemoryFinetuning` does. The peers are the paper's masking
trick with dense SGD (`mem * mask + mem.detach() - (mem * mask).detach()`), and a dense gradient
with dense AdamW. All read by the same `embedding_bag`; which rows learn is given to the peers, so
that they neither count nor score.

First the table alone: forward, backward, update. Its reads are drawn uniformly, which is the worst
case for ours: real texts read fewer different slots. Then the step of a small causal language model
with that memory, on its own reads; once more for a batch that was there before, which is what the
steps of a visit to a fact are, and of which the frozen part below the memory is not computed again.
Peak memory is that of tensors, beside the table itself.

Everything runs as in a training: with torch's own optimizers as they come, and its own allocator.
The dense peers can be helped. AdamW in one pass (`fused=True`) is shown beside them; huge pages for
all sides, which spare them the page faults of their fresh gigabytes, are had with
`THP_MEM_ALLOC_ENABLE=1`.
"""

from dataclasses import replace

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
    """Ours against the peers, on the table and in the whole model; returns ours on the table."""
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
    """The checks at the larger number of slots, but for the one that needs both."""
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
    """Time of a step of the table at the larger size over that at the smaller, in turns.

    Returns:
        Ours at the larger size; their first step is the first one of all, which makes the state.
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
    """Print the breakdown and the optimizers' states."""
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
    """Run the benchmark, print it and write its JSON."""
    parser = benchmark_parser("How fast is a step of sparse memory finetuning?")
    parser.add_argument(
        "--num-keys", type=int, nargs=2, default=[256, 1024], help="half keys; slots: squared"
    )
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    more = {"state_bytes": {}, "breakdown": []}
    report = Report("continual_step", describe_device(device), more=more)
    small, large = (StepSides(StepSizes(num_keys), device) for num_keys in options.num_keys)
    rounds = (2, 3, 2.0) if options.quick else (5, 15, 60.0)
    # A new process is slower at its large table for its first dozen steps: a median needs more.
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
