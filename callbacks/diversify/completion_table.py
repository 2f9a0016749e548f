"""Tables of what the policy sampled in training, with rewards and what the loss made of them."""

from collections.abc import Iterator
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from triptych.callbacks.tracking.run_artifacts import log_table
from triptych.objectives.diversify.experience import Experience
from triptych.protocols import HasExperience, missing


class CompletionTable(Callback):
    """Keeps training completions as ``completions/step_<n>.json``; the loggers get the same table.

    A row stands for a completion: prompt, text, reward and its parts, why scoring failed, whether
    it ended, its length, log-probabilities under policy and reference, MARA's reward and anchor,
    and whether it has weight in the loss. Rows are those of the first prompts of the first process.

    Args:
        every_n_steps: Training steps between tables; the first step always has one.
        max_rows: Largest number of completions in a table.
        max_characters: Longest text kept of a prompt or a completion.

    Raises:
        ValueError: if the module is no `HasExperience`.
    """

    def __init__(
        self,
        every_n_steps: PositiveInt = 10,
        max_rows: PositiveInt = 16,
        max_characters: PositiveInt = 1000,
    ) -> None:
        self.every_n_steps = every_n_steps
        self.max_rows = max_rows
        self.max_characters = max_characters

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(pl_module, HasExperience):
            raise missing(HasExperience, pl_module, "CompletionTable")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, HasExperience)
        experience, step = pl_module.experience, trainer.global_step
        is_due = step == 1 or step % self.every_n_steps == 0
        if experience is None or not is_due or not trainer.is_global_zero:
            return
        log_table(trainer, list(self._rows(experience)), f"completions/step_{step}")

    def _rows(self, experience: Experience) -> Iterator[dict[str, Any]]:
        rollout, scores = experience.rollout, experience.scores
        nothing = [None] * len(rollout)
        sampled = experience.old_log_prob_BT
        left_out = experience.left_out_B
        columns = {
            "reward": _rounded(experience.reward),
            **{name: _rounded(part_B) for name, part_B in scores.components.items()},
            "augmented_reward": _rounded(experience.augmented_reward),
            "log_prob_nats": nothing if sampled is None else _rounded(sampled.sum(-1)),
            "reference_log_prob_nats": _rounded(experience.reference_log_prob),
            "tokens": rollout.num_tokens.tolist(),
            "finished": rollout.finished_B.tolist(),
            "anchor": experience.is_anchor.tolist(),
            "has_weight": [True] * len(rollout) if left_out is None else (~left_out).tolist(),
        }
        for row in range(min(len(rollout), self.max_rows)):
            yield {
                "prompt": rollout.prompts[row][: self.max_characters],
                "completion": rollout.texts[row][: self.max_characters],
                **{name: column[row] for name, column in columns.items()},
                "error": scores.errors.get(row, ""),
            }


def _rounded(column_B: Any) -> list[float | None]:
    """Return numbers of a few digits; None for nan, which JSON does not have."""
    return [None if value != value else round(value, 6) for value in column_B.tolist()]
