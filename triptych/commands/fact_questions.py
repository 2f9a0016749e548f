"""Facts put to an exported model as a user asks them, and whether it answers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triptych.commands.asked_model import AskedModel
from triptych.datamodules.embedded.tables import GENERAL_QUESTIONS
from triptych.datamodules.remember.facts.answer_place import unmarked
from triptych.datamodules.remember.facts.fact_rows import read_facts
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.fact_templates import FactTemplates
from triptych.datamodules.remember.facts.question_template import QUESTION_TEMPLATE
from triptych.datamodules.sources.records import RecordSource
from triptych.metrics.question_answering import answer_in_reply
from triptych.models.long_loop import with_progress
from triptych.models.remember.ledger.fact_texts import sentence_of

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
        follow_ups: Questions that follow from the fact, each with its accepted answers.
    """

    id: str
    sentence: str
    answers: Sequence[str]
    own: str
    other: list[str] = field(default_factory=list)
    neighbours: list[str] = field(default_factory=list)
    follow_ups: list[tuple[str, Sequence[str]]] = field(default_factory=list)

    @property
    def texts(self) -> list[str]:
        """All questions."""
        return [self.own, *self.other, *self.neighbours, *(text for text, _ in self.follow_ups)]


@dataclass
class Replies:
    """What a model said about a fact.

    Attributes:
        own: Whether the fact's own question was answered.
        other: The number of other wordings that were answered.
        neighbours: The replies to the neighbours.
        follow_ups: The number of follow-ups that were answered.
        text: The reply to the fact's own question.
    """

    own: bool
    other: int
    neighbours: list[str]
    follow_ups: int = 0
    text: str = ""


def questions_of(stream: FactStream) -> list[AskedFact]:
    """Return the facts that a stream teaches, with the wordings that it never teaches.

    With the tokenizer of a chat model, these are the wordings of chat form.
    """
    templates = stream.part.worded(stream.tokenizer)
    return [
        AskedFact(
            id=fact.id,
            sentence=unmarked(fact.statement or f"{fact.question} {fact.answers[0]}"),
            answers=fact.answers,
            own=fact.question,
            other=list(templates.question_texts(fact, "held_out")),
            neighbours=[neighbour.prompt for neighbour in fact.locality],
            follow_ups=[(f.prompt, f.answers) for f in fact.portability if f.answers],
        )
        for fact in stream.facts
    ]


def general_questions() -> list[AskedFact]:
    """Return general questions, which a model should answer after teaching as it did before."""
    facts = read_facts(RecordSource(str(GENERAL_QUESTIONS)), FactTemplates([]))
    return [AskedFact(fact.id, fact.question, fact.answers, fact.question) for fact in facts]


def of_ledger(texts: Mapping[str, Any], facts: Sequence[str]) -> list[AskedFact]:
    """Return facts by what a ledger knows of them; those without a question are left out.

    Args:
        texts: What each fact of the ledger says.
        facts: Their ids.
    """
    asked = []
    for fact in facts:
        text = texts[fact] or {}
        question, answers = text.get("question"), list(text.get("answers") or ())
        if question and answers:
            asked.append(AskedFact(fact, sentence_of(text), answers, question))
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
    prompts = {
        text: model.encode_chat([{"role": "user", "content": text}], template)
        for text in dict.fromkeys(text for fact in facts for text in fact.texts)
    }
    # Prompts of about one length need little padding.
    by_length = sorted(prompts, key=lambda text: len(prompts[text]))
    starts = range(0, len(by_length), QUESTIONS_AT_ONCE)
    replies: dict[str, str] = {}
    for start in with_progress(starts, "batches of questions", len(starts)):
        texts = by_length[start : start + QUESTIONS_AT_ONCE]
        made = model.replies([prompts[text] for text in texts], LONGEST_REPLY, 0.0)
        replies |= {text: reply for text, (reply,) in zip(texts, made, strict=True)}
    return [
        Replies(
            own=answer_in_reply(replies[fact.own], fact.answers),
            other=sum(answer_in_reply(replies[text], fact.answers) for text in fact.other),
            neighbours=[replies[text] for text in fact.neighbours],
            follow_ups=sum(answer_in_reply(replies[t], answers) for t, answers in fact.follow_ups),
            text=replies[fact.own],
        )
        for fact in facts
    ]
