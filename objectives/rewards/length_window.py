"""A reward for completions that are neither too short nor too long."""

from typing import Any, Literal

from triptych.objectives.rewards.base import TextReward


class LengthWindow(TextReward):
    """1 for a completion with a length in a window, less outside, at least 0.

    Args:
        least: Shortest length with reward 1.
        most: Longest length with reward 1.
        unit: `words` (separated by white space) or `characters` (without white space at the ends).
        falloff: Number of further words or characters over which the reward falls linearly from 1
            to 0; 0: at once.

    Raises:
        ValueError: if the window is empty or a number is below 0.

    >>> reward = LengthWindow(least=2, most=3, falloff=2)
    >>> [reward.score_one("word " * n, "", {}) for n in (0, 1, 2, 3, 4, 5)]
    [0.0, 0.5, 1.0, 1.0, 0.5, 0.0]
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        least: int = 1,
        most: int = 200,
        unit: Literal["words", "characters"] = "words",
        falloff: int = 0,
    ) -> None:
        if not 0 <= least <= most or falloff < 0:
            raise ValueError(
                f"least is {least}, most {most} and falloff {falloff}: choose 0 <= least <= most, "
                "and a falloff of at least 0"
            )
        self.least = least
        self.most = most
        self.unit = unit
        self.falloff = falloff

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Score the length of the completion."""
        length = len(text.split()) if self.unit == "words" else len(text.strip())
        outside = max(self.least - length, length - self.most, 0)
        if outside == 0:
            return 1.0
        return max(0.0, 1.0 - outside / self.falloff) if self.falloff else 0.0
