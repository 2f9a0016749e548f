"""A reward for being different: from the other completions of the same prompt."""

from typing import Literal

import torch

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.answer_text import normalized
from triptych.objectives.rewards.base import Reward, Scores

# Shapes: B completions


class Distinctness(Reward):
    """How different a completion is from the others of its group: 1 from all, 0 where all are it.

    The mean over the others of 1 - similarity. A completion alone in its group is distinct: 1.

    Args:
        similarity: `exact`: 1 where both are the same as `answer_text.normalized` has them, else 0,
            so the reward is the share of others that are different; `words`: the Jaccard index of
            the two sets of words, the share of all their words that stands in both (1 for two
            completions without words).

    Raises:
        ValueError: if `similarity` is none of these.

    A reward of this kind is a baseline, and none of the papers': it pays for variety as such, a
    wrong answer's too, so multiply it by one for quality (`composed.Product`). It depends on the
    group, so it is not the fixed R(y) of MARA's theorem.
    """

    range = (0.0, 1.0)
    scope = "group"

    def __init__(self, similarity: Literal["exact", "words"] = "exact") -> None:
        if similarity not in ("exact", "words"):
            raise ValueError(f"similarity is {similarity!r}: choose exact or words")
        self.similarity = similarity

    def score(self, rollout: Rollout) -> Scores:
        """Compare each completion with the others of its group."""
        texts = [normalized(text) for text in rollout.texts]
        words = [frozenset(text.split()) for text in texts]
        groups: dict[int, list[int]] = {}
        for row, group in enumerate(rollout.group_B.tolist()):
            groups.setdefault(group, []).append(row)
        reward_B = torch.ones(len(rollout))
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
