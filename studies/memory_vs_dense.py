"""Does a memory model learn facts better than its dense twin, at equal steps and equal FLOPs?

    python -m studies.memory_vs_dense --preset cpu --data_dir FOLDER

Both arms see the same rows in the same order: text, and facts that come back in every pass. The
twin has an FFN of as many multiply-adds a token where the other has its memory. Without
`--data_dir` the embedded text and facts are used.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from triptych.callbacks.run.learning_curves import read_curves
from triptych.studies.arms import SEED_OF_DATA_TOO, Arm, read_summary, run_arms
from triptych.studies.options import seeds_of, study_parser
from triptych.studies.results import at_most, mean_interval, paired_test, write_results

CLAIM = "at equal steps a memory model knows more facts than its dense twin"
STEPS = {"smoke": 20, "cpu": 900, "full": 6000}
METRICS = {
    "answer NLL (nats/token)": "val/facts/answer_nll_nats_per_token",
    "recall (exact match)": "val/facts/exact_match",
    "recall (F1)": "val/facts/f1",
    "text (bits/byte)": "val/text/bits_per_byte",
}
NLL, RECALL, _, TEXT = METRICS


def main(args: Sequence[str] | None = None) -> dict[str, Any]:
    """Run the study; returns what `results.json` holds."""
    takes = ("data_dir", "workers")
    parser = study_parser(__doc__, "memory_vs_dense", STEPS, takes, preset_help="how long to train")
    options = parser.parse_args(args)
    # Settings were chosen on seed 0.
    seeds = seeds_of(options)
    runs = run_arms(
        [
            Arm("memory", _words(options, dense_twin=False)),
            Arm("dense twin", _words(options, dense_twin=True)),
        ],
        seeds,
        options.out / options.preset,
        options.workers,
        seed_options=SEED_OF_DATA_TOO,
    )
    values = {
        arm: {label: [_final(run, key) for run in dirs] for label, key in METRICS.items()}
        for arm, dirs in runs.items()
    }
    memory, dense = values["memory"], values["dense twin"]
    _draw(runs, options.out / "figure.png")
    return write_results(
        options.out,
        CLAIM,
        options.preset,
        {
            arm: {m: mean_interval(v) for m, v in by_metric.items()}
            for arm, by_metric in values.items()
        },
        [paired_test(f"{m}, memory - dense twin", memory[m], dense[m]) for m in METRICS],
        {
            "answer NLL, memory - dense twin, worst seed": at_most(
                max(a - b for a, b in zip(memory[NLL], dense[NLL], strict=True)), 0.0
            ),
            "recall, dense twin - memory, worst seed": at_most(
                max(b - a for a, b in zip(memory[RECALL], dense[RECALL], strict=True)), 0.0
            ),
        },
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
        *("--trainer.max_time", "null"),  # equal steps, however long they take
        *("--trainer.val_check_interval", str(max(1, steps // 4))),
        *("--trainer.accelerator", "cpu"),
    )


def _final(run_dir: Path, key: str) -> float:
    value: float = read_summary(run_dir)["metrics"][key]
    return value


def _draw(runs: dict[str, list[Path]], path: Path) -> None:
    figure = Figure(figsize=(12, 3.6), layout="constrained")
    axes = figure.subplots(1, 3)
    for axis, label in zip(axes, (NLL, RECALL, TEXT), strict=True):
        for color, (arm, dirs) in zip(("tab:blue", "tab:orange"), runs.items(), strict=True):
            for number, run_dir in enumerate(dirs):
                steps, values = read_curves(run_dir / "metrics.csv")[METRICS[label]]
                axis.plot(steps, values, color=color, label=None if number else arm)
        axis.set(xlabel="optimizer step", title=label)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
