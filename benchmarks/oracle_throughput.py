"""How many oracle calls per second does a search for molecules make, end to end?

`python -m benchmarks.oracle_throughput [--quick] [--prior FOLDER] [--out FILE]`

A search samples 64 molecules per step, scores the new ones (`plain_reward`: QED, SA, donors,
similarity to eight drugs) and trains on all of them with the loss of REINVENT. It ends after a
fixed number of distinct scored molecules. The sides run in turn:

- the plain loop: one process, the GRU of torch, all rows sampled until the last one ends, molecules
  scored one by one and stored in a dictionary; with one and with two torch threads;
- two paired runs, REINVENT and MARA with the same seed, in one single-threaded process each, as in
  studies: with the Trainer, a ledger on disk, and the metrics of every step in a file;
- one run with two additional scoring processes.

Processes and imports are ready before the clock starts. Seconds refer to the calls of one search,
so those of the paired runs are halved. Our objective scores every molecule of the plain loop again.
The run with scoring processes must write the same ledger as the run without them.

The prior is `--prior`: an exported folder or the config of an experiment. The default is
`configs/diversify/molecules_prior.yaml`, which is trained first if necessary.
"""

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from triptych import ROOT
from triptych.benchmarks.oracle_throughput_sides import Job, Outcome, Searcher, run_together
from triptych.benchmarks.paired import Timing, time_ratio
from triptych.benchmarks.plain_reward import drugs_task
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
from triptych.callbacks.command_line.init_from import Stage

PRIOR = "configs/diversify/molecules_prior.yaml"
PLAIN, PLAIN_2 = "plain loop", "plain loop, two threads"
PAIR, PARALLEL = "two paired runs", "a run with two scoring processes"
LEAST_OF_PAIR, LEAST_OF_PARALLEL, CALLS_PER_SECOND = 1.8, 1.2, 300.0


def jobs(prior: str, seed: int, num_calls: int) -> dict[str, list[Job]]:
    """Return the jobs of each side by its name; the jobs of one side run in parallel."""
    return {
        PLAIN: [Job("plain", prior, seed, num_calls)],
        PLAIN_2: [Job("plain", prior, seed, num_calls, num_threads=2)],
        PAIR: [Job("ours", prior, seed, num_calls, with_mara=mara) for mara in (False, True)],
        PARALLEL: [Job("ours", prior, seed, num_calls, num_workers=2)],
    }


def compare(report: Report, prior: str, num_calls: int, num_rounds: int) -> None:
    """Run all sides in turn, after a short warm-up round."""
    searchers: list[Searcher] = [Searcher(), Searcher()]
    seconds: dict[str, list[float]] = {}
    outcomes: dict[str, list[list[Outcome]]] = {}
    try:
        for number in range(num_rounds + 1):
            sides = jobs(prior, number, num_calls if number else min(num_calls, 64))
            for name, side in sides.items():
                elapsed, found = run_together(searchers, side)
                if number:
                    seconds.setdefault(name, []).append(elapsed / len(side))
                    outcomes.setdefault(name, []).append(found)
    finally:
        for searcher in searchers:
            searcher.close()
    timings = {
        name: Timing(
            name,
            num_calls,
            seconds[name],
            max(sum(run.resident_bytes for run in found) for found in outcomes[name]),
        )
        for name in seconds
    }
    report.rows += [
        timing.row() | costs(outcomes[name], num_calls / timing.median_s)
        for name, timing in timings.items()
    ]
    report.ratios |= {
        f"{peer} / {ours}@{num_calls}": time_ratio(timings[peer], timings[ours])
        for peer in (PLAIN, PLAIN_2)
        for ours in (PAIR, PARALLEL)
    }
    report.checks |= {
        f"{PAIR}, times the calls of the {PLAIN}": at_least(
            report.ratios[f"{PLAIN} / {PAIR}@{num_calls}"], LEAST_OF_PAIR
        ),
        f"{PARALLEL}, times the calls of the {PLAIN}": at_least(
            report.ratios[f"{PLAIN} / {PARALLEL}@{num_calls}"], LEAST_OF_PARALLEL
        ),
        f"{PAIR}, calls per second together": at_least(
            num_calls / timings[PAIR].median_s, CALLS_PER_SECOND
        ),
    } | agreement(outcomes)


def costs(found: list[list[Outcome]], calls_per_second: float) -> dict[str, Any]:
    """Return calls per second of a side, and CPU milliseconds and samples per call."""
    runs = [run for side in found for run in side]
    num_calls = sum(len(run.scores) for run in runs)
    return {
        "calls_per_s": calls_per_second,
        "cpu_ms_per_call": 1e3 * sum(run.cpu_s for run in runs) / num_calls,
        "samples_per_call": sum(run.samples for run in runs) / num_calls,
    }


def agreement(outcomes: dict[str, list[list[Outcome]]]) -> dict[str, Any]:
    """Check that all sides compute the scores of the plain loop."""
    objective = drugs_task()
    objective.prepare()
    plain = {text: score for (run,) in outcomes[PLAIN] for text, score in run.scores.items()}
    farthest = max(abs(objective.score(text).score - score) for text, score in plain.items())
    different = sum(
        differing(alone, parallel)
        for (alone, _), (parallel,) in zip(outcomes[PAIR], outcomes[PARALLEL], strict=True)
    )
    return {
        "largest difference from a score of the plain loop": at_most(farthest, 0.0),
        "calls that differ with parallel scoring": at_most(different, 0),
    }


def differing(one: Outcome, other: Outcome) -> int:
    """Count the calls that differ in molecule or score."""
    pairs = zip(one.scores.items(), other.scores.items(), strict=False)
    return sum(a != b for a, b in pairs) + abs(len(one.scores) - len(other.scores))


def exported(prior: str) -> str:
    """Return the exported folder of a prior; train it first if it is a config without a run."""
    if Path(prior).suffix not in (".yaml", ".yml"):
        return prior
    path = next((p for p in (Path(prior), ROOT / prior) if p.is_file()), None)
    if path is None:
        raise ValueError(f"--prior {prior}: no such file; give an exported folder or a config")
    return str(Stage(path, {"config": path.read_text()}, ("--tracking.uri", "null")).export())


def print_rates(report: Report, console: Console) -> None:
    """Print calls per second and the costs of a call."""
    table = Table("side", "calls/s", "s", "CPU ms a call", "samples a call", "resident")
    for row in report.rows:
        table.add_row(
            row["name"],
            f"{row['calls_per_s']:.0f}",
            f"{row['p10_s']:.1f} to {row['p90_s']:.1f}",
            f"{row['cpu_ms_per_call']:.2f}",
            f"{row['samples_per_call']:.2f}",
            f"{row['peak_bytes'] / 2**20:,.0f} MiB",
        )
    console.print(table)
    for name, ratio in report.ratios.items():
        console.print(f"{name}: {ratio:.2f}")


def main(arguments: list[str] | None = None) -> Report:
    """Run the benchmark, print the report and write its JSON."""
    parser = benchmark_parser("How many oracle calls a second does a search for molecules make?")
    parser.add_argument("--prior", default=PRIOR, help="exported folder, or a config")
    parser.add_argument("--num-calls", type=int, help="of a search; default 3,000, quick: 500")
    options = parser.parse_args(arguments)
    if options.device not in (None, "cpu"):
        raise ValueError(f"--device {options.device}: only the CPU is measured; leave it out")
    device = prepare_device("cpu", options.threads)
    num_calls = options.num_calls
    if num_calls is None:
        num_calls = 500 if options.quick else 3000
    if num_calls < 1:
        raise ValueError(f"--num-calls is {num_calls}: set it to at least 1")
    report = Report("oracle_throughput", describe_device(device))
    compare(report, exported(options.prior), num_calls, 3 if options.quick else 5)
    console = wide_console()
    print_rates(report, console)
    report.print_checks(console)
    return report.finish(options.out, console)


if __name__ == "__main__":
    run_main(main)
