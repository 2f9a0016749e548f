"""The figure of a policy's coverage of known answers, redrawn while it trains."""

from collections import Counter
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.report.guard import only_a_warning, reports
from triptych.callbacks.run.run_figures import save_run_figure
from triptych.callbacks.tracking.run_artifacts import log_file
from triptych.callbacks.trainer_parts import num_dry_run_batches
from triptych.metrics.display.figure_style import (
    COLORS,
    GREY,
    PALE,
    count_axis,
    series,
    styled,
)
from triptych.metrics.display.metric_names import set_name
from triptych.protocols import CountsModes, missing

#: Set of prompts -> category -> answer -> how often it was given.
ModeCounts = dict[str, dict[str, dict[str, int]]]
_MOST_BANDS = 12
#: The answers of a set that are none of the known ones: never in a colour of success.
_NONE, _NONE_NAME = "(none of them)", "other answers"


class ModeCoverageFigure(Callback):
    """Draws ``figures/mode_coverage.png`` after every validation.

    Each held-out set has a panel. If all of its prompts have the same answers, each answer is a
    band as wide as its share. If they differ (many categories), two lines show the shares by rank,
    averaged over categories, at the first validation and at the last one. Rank 1 is the most
    frequent answer of a category; a flatter line covers more answers.

    Counts are those of the first process.

    Raises:
        ValueError: if the module is no `CountsModes`.
    """

    def __init__(self) -> None:
        self.history: list[tuple[int, ModeCounts]] = []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, CountsModes):
            raise missing(CountsModes, pl_module, "ModeCoverageFigure")

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start a new history at the first step."""
        if trainer.global_step == 0:
            self.history = []

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == 0 and not self.history:
            self._keep(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero or trainer.state.fn != "fit":
            return
        self._keep(trainer, pl_module)
        if not self.history or num_dry_run_batches(trainer):
            return
        # Loggers get the last figure alone.
        with only_a_warning("figures/mode_coverage.png"):
            save_run_figure(trainer, draw_coverage(self.history), "mode_coverage", track=False)

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "figures" / "mode_coverage.png"
        if trainer.is_global_zero and path.is_file():
            log_file(trainer, path)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": [[step, counts] for step, counts in self.history]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(int(step), counts) for step, counts in state_dict["history"]]

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CountsModes)
        plain = {
            name: {category: dict(counts) for category, counts in of_set.items()}
            for name, of_set in pl_module.mode_counts.items()
        }
        if plain:
            self.history.append((trainer.global_step, plain))


@styled
def draw_coverage(history: list[tuple[int, ModeCounts]]) -> Figure:
    """Draw a panel for each set of prompts.

    Args:
        history: Step and counts of each validation, at least one.
    """
    names = list(history[-1][1])
    figure = Figure(figsize=(5.2 * min(2, len(names)), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        points = [(step, counts[name]) for step, counts in history if name in counts]
        if len(points[-1][1]) == 1:
            _draw_bands(axis, [(step, next(iter(of.values()))) for step, of in points])
        else:
            _draw_ranks(axis, points)
        axis.set_title(set_name(f"val/{name}/answers"))
    return figure


def _draw_bands(axis: Axes, points: list[tuple[int, dict[str, int]]]) -> None:
    total: Counter[str] = Counter()
    for _, counts in points:
        total.update(counts)
    first = list(points[-1][1])  # known answers in the data's order, then all other answers
    kept = first if len(first) <= _MOST_BANDS else [a for a, _ in total.most_common(_MOST_BANDS)]
    steps = [step for step, _ in points]
    shares = [
        [counts.get(answer, 0) / max(1, sum(counts.values())) for _, counts in points]
        for answer in kept
    ]
    if len(steps) == 1:  # a band needs two ends
        steps, shares = [steps[0], steps[0] + 1], [[*share, *share] for share in shares]
    bands = axis.stackplot(
        steps,
        shares,
        labels=[_NONE_NAME if answer == _NONE else answer for answer in kept],
        colors=[
            PALE if answer == _NONE else COLORS[place % len(COLORS)]
            for place, answer in enumerate(kept)
        ],
        edgecolor="white",
        linewidth=0.6,
    )
    for band in bands[len(COLORS) :]:  # colours repeat, the pattern does not
        band.set_hatch("//")
    axis.axhline(0.5, color="white", linewidth=2.4)
    axis.axhline(0.5, color="black", linewidth=0.9, linestyle="--", label="one half")
    axis.set(xlabel="completed optimizer steps", ylabel="share of completions", ylim=(0, 1))
    axis.set_xlim(steps[0], steps[-1])
    count_axis(axis)
    handles, labels = axis.get_legend_handles_labels()  # in the order in which bands are stacked
    axis.legend(handles[::-1], labels[::-1], loc="center left", bbox_to_anchor=(1.01, 0.5))


def _draw_ranks(axis: Axes, points: list[tuple[int, dict[str, dict[str, int]]]]) -> None:
    chosen = [points[0], points[-1]] if len(points) > 1 else [points[0]]
    for place, (step, categories) in enumerate(chosen):
        ranked = [
            sorted((n / max(1, sum(of.values())) for n in of.values()), reverse=True)
            for of in categories.values()
        ]
        longest = min(len(shares) for shares in ranked)
        mean = [sum(shares[k] for shares in ranked) / len(ranked) for k in range(longest)]
        style = series(0) if place == len(chosen) - 1 else series(1) | {"color": GREY}
        label = f"after {step:,} steps" if step else "before training"
        axis.plot(range(1, longest + 1), mean, label=label, **style)
    axis.set(
        xlabel="rank of the answer in its category (1: the most frequent)",
        ylabel="share of completions",
    )
    axis.set_ylim(bottom=0)
    count_axis(axis)
    axis.legend()
