"""A reward for completions that match a pattern."""

import re
from typing import Any, Self

from triptych.objectives.rewards.base import TextReward


class RegexMatch(TextReward):
    """1 for a completion that matches a regular expression, else 0.

    Args:
        pattern: In the syntax of Python's `re`, with inline flags: "(?i)yes" ignores case.
        whole: Whether the whole completion must match; false: any part of it.
        negate: Reward completions that do not match.

    Raises:
        ValueError: if the pattern is not a regular expression.

    >>> reward = RegexMatch("[0-9]+")
    >>> reward.score_one("42", "", {}), reward.score_one("about 42", "", {})
    (1.0, 0.0)
    """

    range = (0.0, 1.0)

    def __init__(self, pattern: str, whole: bool = True, negate: bool = False) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(
                f"pattern is {pattern!r}, not a regular expression ({error}): mend it, or escape "
                "what is meant literally with a backslash"
            ) from error
        self.whole = whole
        self.negate = negate

    @classmethod
    def example(cls) -> Self:
        """Return a reward for digits."""
        return cls(r"\d+")

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Match the completion."""
        match = self.pattern.fullmatch(text) if self.whole else self.pattern.search(text)
        return float((match is not None) != self.negate)
