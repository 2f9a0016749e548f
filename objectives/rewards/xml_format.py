"""A reward for the form of a completion: a single XML element."""

from typing import Any

from triptych.objectives.rewards.answer_text import normalized, within_tag
from triptych.objectives.rewards.base import TextReward


class XmlFormat(TextReward):
    """1 for a completion that is a single XML element with text in it, else 0.

    Args:
        tag: Name of the element.
        allowed: Allowed contents, compared after `answer_text.normalized`; null: any text.

    Raises:
        ValueError: if `tag` is not a valid element name, or `allowed` is an empty list.

    >>> reward = XmlFormat(allowed=["1", "2"])
    >>> [reward.score_one(t, "", {}) for t in ("<answer>1</answer>", "<answer>7</answer>", "1")]
    [1.0, 0.0, 0.0]
    """

    range = (0.0, 1.0)

    def __init__(self, tag: str = "answer", allowed: list[str] | None = None) -> None:
        if not tag.isidentifier():
            raise ValueError(f"tag is {tag!r}: give the bare name of an element, such as answer")
        if allowed is not None and not allowed:
            raise ValueError("allowed is an empty list: name what may stand in the tag, or null")
        self.tag = tag
        self.allowed = None if allowed is None else frozenset(map(normalized, allowed))

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Check the form and the content of the element."""
        given = within_tag(text, self.tag)
        if given is None or not given.strip():
            return 0.0
        return float(self.allowed is None or normalized(given) in self.allowed)
