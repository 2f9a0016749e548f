"""A reward of 1 for any of the right answers that the record lists."""

from typing import Any, Self

from triptych.objectives.rewards.answer_text import normalized, within_tag
from triptych.objectives.rewards.base import TextReward


class AnswerInSet(TextReward):
    """1 for a completion that is one of the record's answers, 0 for any other.

    Completion and answers are compared after `answer_text.normalized`, which ignores case, an
    opening article and punctuation at both ends.

    Args:
        tag: The completion must be a single XML element of this name, with the answer as content;
            null: the whole completion is the answer.
        field: The record's field with the list of right answers.

    Raises:
        ValueError: on construction, if `tag` is not a valid element name. A record without the
            field is an error of its completions.

    Source: 2510.20817, section 5 (the 1-2 task: 1 if valid, else 0).

    >>> AnswerInSet().score_one("A pear.", "Name a fruit.", {"answers": ["apple", "pear"]})
    1.0
    """

    range = (0.0, 1.0)

    def __init__(self, tag: str | None = None, field: str = "answers") -> None:
        if tag is not None and not tag.isidentifier():
            raise ValueError(f"tag is {tag!r}: give the bare name of an element, such as answer")
        self.tag = tag
        self.field = field

    @classmethod
    def example(cls) -> Self:
        """Return a reward for answers in a tag."""
        return cls(tag="answer")

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Look up the completion among the right answers."""
        answers = record.get(self.field)
        if not answers or isinstance(answers, str):
            raise ValueError(
                f"the record has no list of right answers in {self.field!r}: give data with this "
                "field, or name another in AnswerInSet's `field`"
            )
        given = text if self.tag is None else within_tag(text, self.tag)
        if given is None:
            return 0.0
        answer = normalized(given)
        return float(answer != "" and answer in {normalized(right) for right in answers})
