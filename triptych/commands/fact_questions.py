"""Facts put to an exported model as a user asks them, and whether it answers."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.commands.asked_model import AskedModel
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.question_template import QUESTION_TEMPLATE
from triptych.metrics.question_answering import normalize_answer

QUESTIONS_AT_ONCE = 16
LONGEST_REPLY = 48


@dataclass
class AskedFact:
    """The questions of a fact.

    Attributes:
        id: The fact's id.
        sentence: The fact for readers.
        answers: Accepted answers.
        own: The fact's own question.
        other: The same asked another way; never taught.
        neighbours: Questions beside the fact, whose replies should stay the same.
    """

    id: str
    sentence: str
    answers: Sequence[str]
    own: str
    other: list[str] = field(default_factory=list)
    neighbours: list[str] = field(default_factory=list)


@dataclass
class Replies:
    """What a model said about a fact.

    Attributes:
        own: Whether the fact's own question was answered.
        other: The number of other wordings that were answered.
        neighbours: The replies to the neighbours.
    """

    own: bool
    other: int
    neighbours: list[str]


def questions_of(stream: FactStream) -> list[AskedFact]:
    """Return the facts that a stream teaches, with the wordings that it never teaches."""
    asked = []
    for fact in stream.facts:
        other = stream.part.templates.question_texts(fact, "held_out")
        further: Sequence[Any] = getattr(fact, "locality", ())
        sentence = fact.statement or f"{fact.question} {fact.answers[0]}"
        neighbours = [neighbour.prompt for neighbour in further]
        asked.append(
            AskedFact(fact.id, sentence, fact.answers, fact.question, list(other), neighbours)
        )
    return asked


def ask_facts(facts: Sequence[AskedFact], folder: Path, device: str | None = None) -> list[Replies]:
    """Ask a model all questions of some facts, greedily.

    Args:
        facts: The facts.
        folder: The exported model.
        device: Name of a device; None: the best there is.
    """
    model = AskedModel(folder, device)
    template = model.chat_template(None) or QUESTION_TEMPLATE
    questions = [text for fact in facts for text in (fact.own, *fact.other, *fact.neighbours)]
    prompts = {
        text: model.encode_chat([{"role": "user", "content": text}], template) for text in questions
    }
    # Prompts of about one length need little padding.
    by_length = sorted(prompts, key=lambda text: len(prompts[text]))
    replies: dict[str, str] = {}
    for start in range(0, len(by_length), QUESTIONS_AT_ONCE):
        texts = by_length[start : start + QUESTIONS_AT_ONCE]
        made = model.replies([prompts[text] for text in texts], LONGEST_REPLY, 0.0)
        replies |= {text: reply for text, (reply,) in zip(texts, made, strict=True)}
    return [
        Replies(
            own=says(replies[fact.own], fact.answers),
            other=sum(says(replies[text], fact.answers) for text in fact.other),
            neighbours=[replies[text] for text in fact.neighbours],
        )
        for fact in facts
    ]


def says(reply: str, answers: Sequence[str]) -> bool:
    """Return whether a reply has one of the answers in it, as whole words where words are written.

    >>> says("It is in Port Anselm.", ["port anselm"]), says("It is 1987.", ["198"])
    (True, False)
    """
    said = normalize_answer(reply)
    for answer in map(normalize_answer, answers):
        is_spelled = answer.isascii()
        pattern = rf"(?<!\w){re.escape(answer)}(?!\w)" if is_spelled else re.escape(answer)
        if answer and re.search(pattern, said):
            return True
    return False
