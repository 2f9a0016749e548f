"""How fast is a step of policy optimisation, against TRL's?

`python -m benchmarks.policy_step [--quick] [--out FILE]`

A step samples 16 completions of 64 tokens for each of 4 prompts of 32, rewards them, scores them
under the reference, and updates the policy by RLOO with beta = 0.03: a randomly initialised Qwen2
of 1.5 million parameters with 4096 tokens, so that nearly every completion goes to the limit. The
peer is `RLOOTrainer.training_step` of TRL with the same weights, prompts, reward, clipping and
AdamW, without gradient checkpointing (which would make it slower), and without the logs and
callbacks around it. Both decode what they sampled. Sampling alone is held against `generate` of
transformers too, which TRL calls.

Peak memory is that of tensors that a step makes, beside the weights, the reference's and the
optimizer's.
"""

import statistics
from contextlib import closing

from rich.console import Console
from rich.table import Table

from triptych.benchmarks.paired import PairedTimer, Timing
from triptych.benchmarks.policy_step_sides import (
    GENERATE,
    OURS,
    OURS_MARA,
    TRL,
    PolicySides,
    PolicySizes,
)
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

LEAST_SPEED_UP = 1.5
MOST_MEMORY = 1.0
MOST_OF_MARA = 0.01
LEAST_OVER_GENERATE = 1.2


def compare(report: Report, timer: PairedTimer, sides: PolicySides) -> None:
    """Time ours, with and without MARA, and TRL's in turns; add what they gave to the report."""
    batch = sides.sizes.batch
    steps = [sides.our_step(True), sides.our_step(False), sides.trl_step()]
    timings = timer.compare("a step", batch, steps)
    report.add(timings)
    report.more["num_parameters"] = sides.num_parameters
    report.more["samples_per_second"] = {timing.name: batch / timing.median_s for timing in timings}
    report.more["shares"] = shares(sides, timings)
    report.add(timer.compare("sampling alone", batch, [sides.our_sampling(), sides.generate()]))
    key = f"{TRL}@{batch}"
    report.checks |= {
        f"speed-up over {key}": at_least(report.ratios[key], LEAST_SPEED_UP),
        f"memory over {key}": at_most(1 / report.memory_ratios[key], MOST_MEMORY),
        f"speed-up over {GENERATE}@{batch}": at_least(
            report.ratios[f"{GENERATE}@{batch}"], LEAST_OVER_GENERATE
        ),
        "share of MARA in a step": at_most(report.more["shares"]["MARA"], MOST_OF_MARA),
    }


def shares(sides: PolicySides, timings: list[Timing]) -> dict[str, float]:
    """Which share of our step each part takes: medians over the steps with MARA.

    The first steps, with and without MARA, are those whose memory was measured.
    """
    assert [timing.name for timing in timings[:2]] == [OURS_MARA, OURS]
    medians = {
        part: statistics.median(seconds[2::2]) for part, seconds in sides.parts.seconds.items()
    }
    return {part: seconds / sum(medians.values()) for part, seconds in medians.items()}


def print_parts(report: Report, console: Console) -> None:
    """Print samples per second, and where our step's time goes."""
    table = Table("side", "samples/s")
    for name, rate in report.more["samples_per_second"].items():
        table.add_row(name, f"{rate:.1f}")
    console.print(table)
    table = Table("part of our step", "share")
    for part, share in report.more["shares"].items():
        table.add_row(part, f"{share:.2%}")
    console.print(table)


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print it and write its JSON."""
    parser = benchmark_parser("How fast is a step of policy optimisation, against TRL's?")
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    report = Report("policy_step", describe_device(device))
    rounds = (2, 5, 10.0) if options.quick else (7, 25, 150.0)
    with (
        closing(PolicySides(PolicySizes(), device)) as sides,
        PairedTimer(device, *rounds) as timer,
    ):
        compare(report, timer, sides)
    console = wide_console()
    report.print(console)
    print_parts(report, console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
