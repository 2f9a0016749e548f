"""How fast is a step of policy optimisation against TRL?

`python -m benchmarks.policy_step [--quick] [--model smollm2] [--out FILE]`

A step samples 16 completions of 64 tokens for each of 4 prompts of 32 tokens, rewards them, scores
them under the reference, and updates the policy by RLOO with beta = 0.03. The policy is a randomly
initialised Qwen2 with 1.5 million parameters and 4096 tokens, so nearly every completion reaches
the limit. The peer is `RLOOTrainer.training_step` of TRL with the same weights, prompts, reward,
clipping and AdamW. It runs without gradient checkpointing, which would be slower, and without logs
and callbacks. Both decode their samples. Sampling alone is also compared with `generate` of
transformers, which TRL calls.

`--model` takes a chat model instead, with adapters of rank 16: 8 completions of 32 tokens for each
of 4 prompts in its chat template.

Peak memory counts the tensors that a step creates, without weights, reference and optimizer state.
"""

import statistics
from contextlib import closing

from rich.console import Console
from rich.table import Table

from triptych.benchmarks.paired import PairedTimer, Timing
from triptych.benchmarks.policy_step_chat import CHAT_SIZES, ChatSides
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
    """Time our step, with and without MARA, and the step of TRL; add the results to the report."""
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
    """Compute the share of each part in our step: medians over the steps with MARA.

    Steps alternate between with and without MARA. The first pair is left out, since it ran under
    the memory profiler.
    """
    assert [timing.name for timing in timings[:2]] == [OURS_MARA, OURS]
    medians = {
        part: statistics.median(seconds[2::2]) for part, seconds in sides.parts.seconds.items()
    }
    return {part: seconds / sum(medians.values()) for part, seconds in medians.items()}


def print_parts(report: Report, console: Console) -> None:
    """Print samples per second, and the shares of the parts of our step."""
    table = Table("side", "samples/s")
    for name, rate in report.more["samples_per_second"].items():
        table.add_row(name, f"{rate:.1f}")
    console.print(table)
    table = Table("part of our step", "share")
    for part, share in report.more["shares"].items():
        table.add_row(part, f"{share:.2%}")
    console.print(table)


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How fast is a step of policy optimisation against TRL?")
    parser.add_argument(
        "--model", help="chat model with adapters: a name, such as smollm2, or a folder"
    )
    options = parser.parse_args(arguments)
    device = prepare_device(options.device, options.threads)
    report = Report("policy_step", describe_device(device))
    rounds = (2, 5, 10.0) if options.quick else (7, 25, 150.0)
    if options.model is not None:
        made: PolicySides = ChatSides(options.model, CHAT_SIZES, device)
    else:
        made = PolicySides(PolicySizes(), device)
    with (
        closing(made) as sides,
        PairedTimer(device, *rounds) as timer,
    ):
        compare(report, timer, sides)
    console = wide_console()
    report.print(console)
    print_parts(report, console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
