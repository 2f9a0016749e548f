"""A trace of MARA's anchors: the completion of each prompt that sets the reward of the others."""

import csv
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from typing_extensions import override

from triptych.callbacks.report.guard import reports
from triptych.callbacks.run.run_figures import save_run_figure
from triptych.metrics.display.figure_style import (
    BLUE,
    WIDTH,
    count_axis,
    share_axis,
    styled,
)
from triptych.objectives.diversify.experience import Experience
from triptych.protocols import HasExperience, missing

COLUMNS = (
    "step",
    "prompt",
    "anchor",
    "reference_log_prob_nats",
    "anchor_reward",
    "changed",
    "num_above",
    "reward_difference",
)


@dataclass
class _Seen:
    anchor: str
    times: int = 1
    changes: int = 0


class AnchorTrace(Callback):
    """Writes ``anchors.csv`` and ``figures/anchors.png`` of a training with MARA.

    A row stands for a prompt of a step with an anchor. It holds the anchor's text, its
    log-probability under the reference and its reward R(z). It says whether the anchor differs from
    the one at the prompt's last visit, and how many completions were above the threshold. The mean
    of R(z) - R(y) over them is what MARA adds to an average good answer before any shift. Rows are
    those of the first process.

    Args:
        every_n_steps: Training steps between rows.
        max_characters: Longest text kept of a prompt or an anchor.

    Raises:
        ValueError: if the module is no `HasExperience`.
    """

    def __init__(self, every_n_steps: PositiveInt = 1, max_characters: PositiveInt = 120) -> None:
        self.every_n_steps = every_n_steps
        self.max_characters = max_characters
        self._seen: dict[str, _Seen] = {}
        self._waiting: list[dict[str, Any]] = []
        #: (step, share of prompts whose anchor changed, mean R(z) - R(y)) of each traced step.
        self.curve: list[tuple[int, float, float]] = []

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, HasExperience):
            raise missing(HasExperience, pl_module, "AnchorTrace")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HasExperience)
        experience, step = pl_module.experience, trainer.global_step
        if experience is None or step % self.every_n_steps or not trainer.is_global_zero:
            return
        rows = self._rows(experience, step)
        if rows:
            changed = sum(row["changed"] for row in rows) / len(rows)
            difference = sum(row["reward_difference"] for row in rows) / len(rows)
            self.curve.append((step, changed, difference))
        self._waiting += rows
        if len(self._waiting) >= 512:
            self._write(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._write(trainer)
        if not trainer.is_global_zero or not self.curve:
            return
        save_run_figure(trainer, draw_anchors(self.curve), "anchors")

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return how often anchors changed."""
        again = sum(seen.times - 1 for seen in self._seen.values())
        if not again:
            return []
        changes = sum(seen.changes for seen in self._seen.values())
        return [
            (
                "anchors that changed from one visit of a prompt to the next",
                f"{changes:,} of {again:,} ({100 * changes / again:.1f}%)",
            )
        ]

    @override
    def state_dict(self) -> dict[str, Any]:
        seen = {
            prompt: [seen.anchor, seen.times, seen.changes] for prompt, seen in self._seen.items()
        }
        return {"seen": seen, "curve": [list(point) for point in self.curve]}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._seen = {prompt: _Seen(*values) for prompt, values in state_dict["seen"].items()}
        self.curve = [(int(s), float(c), float(d)) for s, c, d in state_dict["curve"]]

    def _rows(self, experience: Experience, step: int) -> list[dict[str, Any]]:
        rollout = experience.rollout
        columns = (
            experience.is_anchor,
            experience.above_threshold,
            rollout.group_B,
            experience.reward,
            experience.reference_log_prob,
        )
        # One copy to the host.
        anchor_B, above_B, group_B, reward_B, reference_B = (
            torch.stack([column.double() for column in columns]).cpu().unbind()
        )
        reward_B = reward_B.to(experience.reward.dtype)
        made: list[dict[str, Any]] = []
        for row in anchor_B.nonzero().flatten().tolist():
            own_B = (above_B > 0) & (group_B == group_B[row])
            reward = float(reward_B[row])
            difference = float((reward - reward_B[own_B]).mean())
            prompt = rollout.prompts[row][: self.max_characters]
            anchor = rollout.texts[row][: self.max_characters]
            made.append(
                {
                    "step": step,
                    "prompt": prompt,
                    "anchor": anchor,
                    "reference_log_prob_nats": round(float(reference_B[row]), 4),
                    "anchor_reward": reward,
                    "changed": self._note(prompt, anchor),
                    "num_above": int(own_B.sum()),
                    "reward_difference": difference,
                }
            )
        return made

    def _note(self, prompt: str, anchor: str) -> bool:
        """Remember the prompt's anchor, and return whether it changed."""
        seen = self._seen.get(prompt)
        if seen is None:
            self._seen[prompt] = _Seen(anchor)
            return False
        changed = seen.anchor != anchor
        seen.anchor, seen.times, seen.changes = anchor, seen.times + 1, seen.changes + changed
        return changed

    def _write(self, trainer: Trainer) -> None:
        if not self._waiting or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "anchors.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerows(self._waiting)
        self._waiting = []


@styled
def draw_anchors(curve: list[tuple[int, float, float]]) -> Figure:
    """Draw how often anchors change, and their reward above the mean of good answers.

    Args:
        curve: Step, share of prompts whose anchor changed, mean R(z) - R(y).
    """
    steps = [step for step, _, _ in curve]
    figure = Figure(figsize=(WIDTH, 2.8), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(steps, [changed for _, changed, _ in curve], color=BLUE, linewidth=1.0)
    left.set(title="prompts whose anchor changed", ylabel="share")
    share_axis(left)
    differences = [difference for _, _, difference in curve]
    right.plot(steps, differences, color=BLUE, linewidth=1.0)
    right.set(title="reward of anchors above the mean of good answers", ylabel="reward")
    if not any(differences):
        right.set_ylim(-1, 1)
        right.text(
            0.5, 0.75, "all good answers earn the same", ha="center", transform=right.transAxes
        )
    for axis in (left, right):
        axis.set(xlabel="completed optimizer steps")
        axis.set_xlim(left=0)
        count_axis(axis)
    return figure
