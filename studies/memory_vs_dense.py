"""Does a memory model learn facts better than its dense twin at equal steps and FLOPs?

    python -m studies.memory_vs_dense --preset cpu --data_dir FOLDER

Both arms see the same rows in the same order: text, and facts that recur in every pass. In place of
the memory the twin has an FFN with as many multiply-adds per token. Without `--data_dir` the
embedded text and facts are used.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from triptych.callbacks.run.learning_curves import read_curves
from triptych.metrics.display.figure_style import WIDTH, count_axis, series, styled
from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, device_of, read_summary, run_arms
from triptych.studies.figures import save_figure
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import at_most, compare_arms, summarize, write_results
from triptych.studies.study_tracking import begin_study

CLAIM = "at equal steps a memory model knows more facts than its dense twin"
STEPS = {"smoke": 20, "cpu": 900, "full": 6000}
METRICS = {
    "answer NLL (nats/token)": "val/facts/answer_nll_nats_per_token",
    "recall (exact match)": "val/facts/exact_match",
    "recall (F1)": "val/facts/f1",
    "text (bits/byte)": "val/text/bits_per_byte",
}
NLL, RECALL, _, TEXT = METRICS
MEMORY, DENSE = "memory", "dense twin"


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study and return the content of `results.json`."""
    parser = study_parser(__doc__, "memory_vs_dense", STEPS, ("data_dir", "workers"))
    options = begin_study(parser, args)
    # The settings were chosen on seed 0.
    seeds = seeds_of(options)
    runs = run_arms(
        [
            Arm(MEMORY, _words(options, dense_twin=False)),
            Arm(DENSE, _words(options, dense_twin=True)),
        ],
        seeds,
        options.out / options.preset,
        options.workers,
        SEED_OF_DATA_TOO,
    )
    numbers = {arm: [_final(run) for run in dirs] for arm, dirs in runs.items()}
    pairs = list(zip(numbers[MEMORY], numbers[DENSE], strict=True))
    save_figure(_draw(runs), options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        summarize(numbers),
        [compare_arms(numbers, metric, MEMORY, DENSE) for metric in METRICS],
        {
            "answer NLL, memory - dense twin, worst seed": at_most(
                max(memory[NLL] - dense[NLL] for memory, dense in pairs), 0.0
            ),
            "recall, dense twin - memory, worst seed": at_most(
                max(dense[RECALL] - memory[RECALL] for memory, dense in pairs), 0.0
            ),
        },
        device=device_of(*runs.values()),
        steps=STEPS[options.preset],
    )


def _words(options: argparse.Namespace, dense_twin: bool) -> tuple[str, ...]:
    steps = STEPS[options.preset]
    words = ["--config", "configs/remember/pretrain.yaml"]
    if options.data_dir is None:
        words += ["--data", "configs/data/text_and_facts.yaml"]
    else:
        words += ["--data.init_args.data_dir", options.data_dir]
    return (
        *words,
        *("--model.init_args.memory.dense_twin", str(dense_twin).lower()),
        *("--trainer.max_steps", str(steps)),
        *("--trainer.max_time", "null"),  # the arms are compared at equal steps
        *("--trainer.val_check_interval", str(max(1, steps // 4))),
        *("--trainer.accelerator", "cpu"),
    )


def _final(run_dir: Path) -> dict[str, float]:
    metrics = read_summary(run_dir)["metrics"]
    return {label: metrics[key] for label, key in METRICS.items()}


@styled
def _draw(runs: dict[str, list[Path]]) -> Figure:
    figure = Figure(figsize=(WIDTH, 3.2), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, label in zip(axes, (NLL, RECALL, TEXT), strict=True):
        for place, (arm, dirs) in enumerate(runs.items()):
            for number, run_dir in enumerate(dirs):
                steps, values = read_curves(run_dir / "metrics.csv")[METRICS[label]]
                axis.plot(steps, values, label=None if number else arm, **series(place))
        axis.set(xlabel="completed optimizer steps", title=label)
        count_axis(axis, most=4)
    axes[0].legend()
    return figure


if __name__ == "__main__":
    main()
