"""How much of each known answer a policy gives, redrawn while it trains."""

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking

#: Set of prompts -> category -> answer -> times it was given.
ModeCounts = Mapping[str, Mapping[str, Mapping[str, int]]]
_MOST_BANDS = 12


class ModeCoverageFigure(Callback):
    """Draws ``figures/mode_coverage.png`` after every validation.

    A panel for each held-out set. Where all of its prompts have the same answers, each answer is a
    band as wide as its share. Where they differ (many categories), the lines are the shares by
    rank, the most frequent answer of a category first, averaged over categories: first validation
    against the last; the flatter, the more is covered.

    Works with any module whose `evaluation` has `mode_counts`; counts are the first process's.
    """

    def __init__(self) -> None:
        self.history: list[tuple[int, dict[str, dict[str, dict[str, int]]]]] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what was counted before the first step, if anything was."""
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
        if not self.history or trainer.fast_dev_run:
            return
        path = Path(trainer.default_root_dir) / "figures" / "mode_coverage.png"
        with atomic_file(path) as partial:
            draw_coverage(self.history).savefig(partial, dpi=150, format="png")

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        path = Path(trainer.default_root_dir) / "figures" / "mode_coverage.png"
        for logger in trainer.loggers:
            if isinstance(logger, MLflowTracking) and trainer.is_global_zero and path.is_file():
                logger.log_file(path, "figures")

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"history": [[step, counts] for step, counts in self.history]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.history = [(int(step), counts) for step, counts in state_dict["history"]]

    def _keep(self, trainer: Trainer, pl_module: LightningModule) -> None:
        counts: ModeCounts = getattr(getattr(pl_module, "evaluation", None), "mode_counts", {})
        if counts:
            plain = {
                name: {category: dict(of) for category, of in of_set.items()}
                for name, of_set in counts.items()
            }
            self.history.append((trainer.global_step, plain))


def draw_coverage(
    history: list[tuple[int, dict[str, dict[str, dict[str, int]]]]],
) -> Figure:
    """Draw a panel for each set of prompts.

    Args:
        history: Step and counts (`ModeCounts`) of each validation, at least one.
    """
    names = list(history[-1][1])
    figure = Figure(figsize=(4.8 * len(names), 3.2), layout="constrained")
    axes = figure.subplots(1, len(names), squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        points = [(step, counts[name]) for step, counts in history if name in counts]
        if len(points[-1][1]) == 1:
            _draw_bands(axis, [(step, next(iter(of.values()))) for step, of in points])
        else:
            _draw_ranks(axis, points)
        axis.set_title(name.replace("_", " "))
        axis.spines[["top", "right"]].set_visible(False)
    return figure


def _draw_bands(axis: Axes, points: list[tuple[int, dict[str, int]]]) -> None:
    total: Counter[str] = Counter()
    for _, counts in points:
        total.update(counts)
    first = list(points[-1][1])  # known answers in the data's order, what is none of them last
    kept = first if len(first) <= _MOST_BANDS else [a for a, _ in total.most_common(_MOST_BANDS)]
    steps = [step for step, _ in points]
    shares = [
        [counts.get(answer, 0) / max(1, sum(counts.values())) for _, counts in points]
        for answer in kept
    ]
    if len(steps) == 1:  # a band needs two ends
        steps, shares = [steps[0], steps[0] + 1], [[*share, *share] for share in shares]
    axis.stackplot(steps, shares, labels=kept, alpha=0.85)
    axis.set(xlabel="optimizer step", ylabel="share of completions", ylim=(0, 1))
    axis.legend(frameon=False, fontsize="small", loc="center right")


def _draw_ranks(axis: Axes, points: list[tuple[int, dict[str, dict[str, int]]]]) -> None:
    chosen = [points[0], points[-1]] if len(points) > 1 else [points[0]]
    for (step, categories), color in zip(chosen, ("0.6", "tab:blue"), strict=False):
        ranked = [
            sorted((n / max(1, sum(of.values())) for n in of.values()), reverse=True)
            for of in categories.values()
        ]
        longest = min(len(shares) for shares in ranked)
        mean = [sum(shares[k] for shares in ranked) / len(ranked) for k in range(longest)]
        axis.plot(range(1, longest + 1), mean, color=color, label=f"step {step}")
    axis.set(xlabel="rank of the answer in its category", ylabel="share of completions")
    axis.legend(frameon=False, fontsize="small")
