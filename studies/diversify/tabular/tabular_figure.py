"""The figure of the tabular study: the switch, fifteen to one, and entropies of sampled runs."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from triptych.metrics.display.figure_style import (
    BLUE,
    GREY,
    ORANGE,
    PURPLE,
    VERMILLION,
    WIDTH,
    styled,
)
from triptych.objectives.diversify.kl import Divergence
from triptych.objectives.diversify.target_distribution import entropy_bits, target
from triptych.studies.diversify.tabular.tabular_runs import Arm, Task
from triptych.studies.figures import save_figure

Exact = Mapping[tuple[str, str, Arm, float], tuple[Tensor, Tensor]]
Sampled = Mapping[tuple[str, Arm, float], Tensor]

COLORS: dict[Arm, str] = {"none": GREY, "algorithm 1": BLUE, "algorithm 2": VERMILLION}
NAMES: dict[Arm, str] = {
    "none": "vanilla",
    "algorithm 1": "MARA 1",
    "algorithm 2": "MARA 2",
}


def draw(tasks: Mapping[str, Task], sampled: Sampled, exact: Exact, path: Path) -> None:
    """Draw closed forms as lines or bars, exact runs as dots, sampled runs as points.

    Args:
        tasks: Maps names to tasks; `two modes` and `fifteen to one` are drawn.
        sampled: Probabilities (S, K) by layout, arm and beta.
        exact: Reached and closed-form log-probabilities by task, objective, arm and beta.
        path: Picture to write.
    """
    save_figure(_draw(tasks, sampled, exact), path)


@styled
def _draw(tasks: Mapping[str, Task], sampled: Sampled, exact: Exact) -> Figure:
    figure = Figure(figsize=(WIDTH, 7.6), layout="constrained")
    panels = figure.subplot_mosaic([["switch", "imbalance"], ["entropies", "entropies"]])
    _draw_switch(panels["switch"], tasks["two modes"], exact)
    _draw_imbalance(panels["imbalance"], exact)
    _draw_entropies(panels["entropies"], sampled)
    return figure


def _draw_switch(axis: Axes, task: Task, exact: Exact) -> None:
    runs = [key for key in exact if key[:2] == ("two modes", "k1 in reward")]
    betas = np.linspace(0.045, 0.3, 200)
    styles: dict[Arm, str] = {"none": "-", "algorithm 1": "--"}
    for arm, style in styles.items():
        mara, reward_K, reference_K = task.mara(arm), task.rewards(), task.reference_log_prob()
        curve = np.array(
            [target("reverse", reward_K, reference_K, b, mara)[:2].exp().tolist() for b in betas]
        )
        if arm == "none":
            axis.plot(betas, curve[:, 0], color=ORANGE, label="reward .75, likelier")
            axis.plot(betas, curve[:, 1], color=PURPLE, label="reward 1, rarer")
        else:
            axis.plot(betas, curve[:, 0], style, color=BLUE, label="either, MARA")
        for key in runs:
            if key[2] == arm:
                reached = exact[key][0].exp().tolist()
                colors = (ORANGE, PURPLE) if arm == "none" else (BLUE,) * 2
                for mode, color in enumerate(colors):
                    axis.plot(key[3], reached[mode], "o", color=color, markersize=4)
    reference = task.reference_log_prob()
    star = (task.reward_K[1] - task.reward_K[0]) / float(reference[0] - reference[1])
    axis.axvline(star, color="black", linewidth=0.8, linestyle=":")
    axis.annotate(rf"$\beta^*$ = {star:.3f}", (star + 0.004, 0.93))
    axis.set(
        xlabel=r"$\beta$",
        ylabel="probability at the optimum",
        ylim=(0, 1),
        title="Two modes, reverse KL",
    )
    axis.legend()


def _draw_imbalance(axis: Axes, exact: Exact) -> None:
    beta = max(key[3] for key in exact if key[0] == "fifteen to one")
    objectives: tuple[tuple[str, Divergence], ...] = (
        ("k1 in reward", "reverse"),
        ("k3 in loss", "forward"),
    )
    for group, (objective, _) in enumerate(objectives):
        for number, arm in enumerate(NAMES):
            reached, closed = exact["fifteen to one", objective, arm, beta]
            share = _rare_share(closed)
            x = group + (number - 1) * 0.26
            axis.bar(x, share, width=0.24, color=COLORS[arm], label=None if group else NAMES[arm])
            dot_label = None if group or number else "exact-gradient run"
            axis.plot(x, _rare_share(reached), "ko", markersize=4, label=dot_label)
            axis.annotate(f"{share:.2f}", (x, share + 0.02), ha="center")
    axis.axhline(0.5, color="black", linewidth=0.8, linestyle=":")
    axis.set_xticks([0, 1], ["reverse KL", "forward KL"])
    axis.set(
        ylim=(0, 0.8),
        ylabel="share of the rare answer among the right ones",
        title=rf"Equal rewards, reference 15 : 1, $\beta$ = {beta:g}",
    )
    axis.legend(loc="upper left")


def _rare_share(log_prob_K: Tensor) -> float:
    """Return the probability of answer 1 among answers 0 and 1."""
    return float(log_prob_K[:2].softmax(-1)[1])


def _draw_entropies(axis: Axes, sampled: Sampled) -> None:
    layouts = list(dict.fromkeys(layout for layout, _, _ in sampled))
    betas = sorted({beta for _, _, beta in sampled})
    markers = "osD^v"
    for row, layout in enumerate(layouts):
        for number, arm in enumerate(NAMES):
            for place, beta in enumerate(betas):
                right = sampled[layout, arm, beta][:, :2]
                bits = entropy_bits((right / right.sum(-1, keepdim=True)).log())
                y = row + (number - 1) * 0.22
                axis.plot(
                    float(bits.mean()),
                    y,
                    markers[place % len(markers)],
                    color=COLORS[arm],
                    markerfacecolor=COLORS[arm] if place == len(betas) - 1 else "none",
                    markersize=6,
                )
    for place, beta in enumerate(betas):
        axis.plot(
            [],
            [],
            markers[place % len(markers)],
            color="black",
            markerfacecolor="black" if place == len(betas) - 1 else "none",
            label=rf"$\beta$ = {beta:g}",
        )
    axis.axvline(1.0, color="black", linewidth=0.8, linestyle=":")
    axis.set_yticks(range(len(layouts)), layouts)
    axis.invert_yaxis()
    axis.set(
        xlim=(-0.03, 1.03),
        xlabel="entropy of the right answers (bits), mean of seeds",
        title="Sampled runs: one or two",
    )
    axis.legend(loc="upper left")
