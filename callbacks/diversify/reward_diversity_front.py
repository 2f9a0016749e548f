"""The figure of reward against diversity over the validations of a run."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.report.guard import reports
from triptych.callbacks.run.run_figures import save_run_figure
from triptych.callbacks.trainer_parts import num_dry_run_batches
from triptych.metrics.display.figure_style import series, styled
from triptych.metrics.display.metric_names import quantity_of, set_name
from triptych.protocols import MeasuresStart

Point = tuple[int, float, float]
#: Default measures of diversity: the first that validation logs is drawn.
DIVERSITIES = ("mode_entropy_bits", "distinct_right_answers", "distinct_1")


class RewardDiversityFront(Callback):
    """Draws ``figures/reward_diversity_front.png``: one path through the plane for each set.

    Rings mark the front: the points that no other point of the path dominates. A path starts before
    the first step if the module `MeasuresStart`.

    Args:
        reward: Last part of the log keys of the reward.
        diversity: Last part of the log keys of the diversity; null: the first of
            `mode_entropy_bits`, `distinct_right_answers`, `distinct_1` that is logged.
    """

    def __init__(self, reward: str = "reward", diversity: str | None = None) -> None:
        self.reward = reward
        self.diversity = diversity
        self.paths: dict[str, list[Point]] = {}

    @override
    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        is_first = trainer.global_step == 0 and not self.paths
        if is_first and isinstance(pl_module, MeasuresStart):
            self._keep(pl_module.start_numbers, 0)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return
        numbers = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self._keep(numbers, trainer.global_step)

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero or num_dry_run_batches(trainer) or not self.paths:
            return
        figure = draw_front(self.paths, self.reward, self.diversity or "diversity")
        save_run_figure(trainer, figure, "reward_diversity_front")

    @override
    def state_dict(self) -> dict[str, Any]:
        paths = {name: [list(p) for p in points] for name, points in self.paths.items()}
        return {"paths": paths, "diversity": self.diversity}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.diversity = state_dict["diversity"]
        self.paths = {
            name: [(int(s), float(r), float(d)) for s, r, d in points]
            for name, points in state_dict["paths"].items()
        }

    def _keep(self, numbers: dict[str, float], step: int) -> None:
        keys = {
            key.split("/")[1]: key
            for key in numbers
            if key.startswith("val/") and key.rpartition("/")[2] == self.reward
        }
        for name, key in keys.items():
            if self.diversity is None:
                known = (k for k in DIVERSITIES if f"val/{name}/{k}" in numbers)
                self.diversity = next(known, None)
            value = numbers.get(f"val/{name}/{self.diversity}")
            if value is not None:
                self.paths.setdefault(name, []).append((step, numbers[key], value))


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other point dominates (as good in both numbers, better in one).

    >>> front([(0, 0.5, 1.0), (1, 0.9, 0.8), (2, 0.8, 0.7)])
    [(0, 0.5, 1.0), (1, 0.9, 0.8)]
    """
    return [
        p
        for p in points
        if not any(o[1] >= p[1] and o[2] >= p[2] and (o[1], o[2]) != (p[1], p[2]) for o in points)
    ]


@styled
def draw_front(paths: dict[str, list[Point]], reward: str, diversity: str) -> Figure:
    """Draw the path of each set of prompts.

    Args:
        paths: Set -> (step, reward, diversity) of each validation.
        reward: Name of the reward.
        diversity: Name of the diversity.
    """
    figure = Figure(figsize=(5.6, 3.8), layout="constrained")
    axis = figure.subplots()
    for number, (name, points) in enumerate(paths.items()):
        style = series(number)
        rewards, diversities = [p[1] for p in points], [p[2] for p in points]
        axis.plot(rewards, diversities, label=set_name(f"val/{name}/reward"), **style)
        best = front(points)
        axis.plot(
            [p[1] for p in best],
            [p[2] for p in best],
            linestyle="none",
            marker="o",
            markersize=10,
            markerfacecolor="none",
            color=style["color"],
            label=None if number else "no validation is better in both",
        )
        for step, x, y in {points[0], points[-1]}:
            axis.annotate(
                f"step {step:,}",
                (x, y),
                xytext=(0, -12),
                textcoords="offset points",
                ha="right" if x > sum(axis.get_xlim()) / 2 else "left",
            )
    axis.set(xlabel=quantity_of(reward).label, ylabel=quantity_of(diversity).label)
    axis.margins(0.12)
    axis.legend(loc="best")
    return figure
