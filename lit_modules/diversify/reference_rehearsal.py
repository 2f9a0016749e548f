"""Right completions of the reference for prompts that it solves, sampled once and kept."""

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from triptych.models.diversify.rollout import Rollout, join_rollouts
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.rivals.rehearsal import Rehearsal

# Shapes: B completions, T completion positions

Prompts = Sequence[Mapping[str, Any]]


class SampleReference(Protocol):
    """Samples from the reference and scores; the draw follows from the number of the prompt."""

    def __call__(self, prompts: Prompts, num_samples: int, number: int) -> Experience:
        """Return the scored completions, with their reference log-probabilities."""


@dataclass
class Rehearsed:
    """Completions of the reference to rehearse in a step.

    Attributes:
        rollout: They, right ones only.
        reference_log_prob_BT: Log-probability of each of their tokens under the reference.
    """

    rollout: Rollout
    reference_log_prob_BT: Tensor


class ReferenceRehearsal:
    """Finds out which prompts the reference solves, and keeps its right completions of them.

    A prompt is sampled when it is first seen. Its draw depends on seed and prompt only, so a
    resumed run samples the same. The completions stay in memory: a few kilobytes for each solved
    prompt.

    Args:
        settings: Number of samples, and the share of right ones in solved prompts.
        sample: Samples from the reference and scores.
    """

    def __init__(self, settings: Rehearsal, sample: SampleReference) -> None:
        self.settings = settings
        self._sample = sample
        self._known: dict[tuple[str, tuple[int, ...]], Rehearsed | None] = {}

    def of(self, prompts: Prompts) -> list[Rehearsed | None]:
        """Return the right completions of each prompt; None where the reference does not solve it.

        Args:
            prompts: The data's rows.
        """
        return [self._of_one(record) for record in prompts]

    def _of_one(self, record: Mapping[str, Any]) -> Rehearsed | None:
        key = (str(record.get("prompt", "")), tuple(record.get("prompt_ids") or ()))
        if key not in self._known:
            number = zlib.crc32(repr(key).encode("utf-8", "surrogatepass"))
            self._known[key] = self._draw(record, number)
        return self._known[key]

    def _draw(self, record: Mapping[str, Any], number: int) -> Rehearsed | None:
        drawn = self._sample([record], self.settings.num_samples, number)
        right_B = drawn.reward >= self.settings.right_reward
        if float(right_B.float().mean()) < self.settings.solved_share:
            return None
        rows = right_B.nonzero().flatten()
        return Rehearsed(drawn.rollout.select(rows), drawn.reference_log_prob_BT[rows])


def join_rehearsed(parts: Sequence[Rehearsed]) -> Rehearsed:
    """Join the completions of several prompts, padded to one length."""
    rollout = join_rollouts([part.rollout for part in parts])
    length = rollout.token_ids_BT.shape[1]
    columns = [part.reference_log_prob_BT for part in parts]
    padded = [pad(column_BT, (0, length - column_BT.shape[1])) for column_BT in columns]
    return Rehearsed(rollout, torch.cat(padded))
