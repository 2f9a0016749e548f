"""A reward for difference from the other completions of the same prompt."""

from typing import Literal

import torch

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.answer_text import normalized
from triptych.objectives.rewards.base import Reward, Scores

# Shapes: B completions


class Distinctness(Reward):
    """The mean of 1 - similarity over the other completions of the group, from 0 to 1.

    A completion alone in its group gets 1.

    Args:
        similarity: `exact`: 1 if both are equal after `answer_text.normalized`, else 0, so the
            reward is the share of different completions. `words`: the Jaccard index of the two
            sets of words, |both| / |either| (1 for two completions without words).

    This is a baseline, and not from the papers. It rewards variety as such, also of wrong answers,
    so multiply it by a reward for quality (`composed.Product`). It depends on the group, so it is
    not the fixed R(y) of MARA's theorem.
    """

    range = (0.0, 1.0)
    scope = "group"

    def __init__(self, similarity: Literal["exact", "words"] = "exact") -> None:
        self.similarity = similarity

    def score(self, rollout: Rollout) -> Scores:
        """Compare each completion with the others of its group."""
        texts = [normalized(text) for text in rollout.texts]
        words = [frozenset(text.split()) for text in texts]
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(rollout.group_B.tolist()):
            groups.setdefault(group, []).append(row)
        reward_B = torch.ones(len(rollout), dtype=torch.float32)
        for rows in groups.values():
            for row in rows:
                others = [other for other in rows if other != row]
                if not others:
                    continue
                if self.similarity == "exact":
                    alike = sum(float(texts[row] == texts[other]) for other in others)
                else:
                    alike = sum(_jaccard(words[row], words[other]) for other in others)
                reward_B[row] = 1 - alike / len(others)
        return Scores(reward_B)


def _jaccard(first: frozenset[str], second: frozenset[str]) -> float:
    union = first | second
    return len(first & second) / len(union) if union else 1.0
