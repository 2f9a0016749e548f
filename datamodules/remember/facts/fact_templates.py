"""Wordings of facts: statements and questions by relation, some questions held out of training.

    row {"question": "What is the capital of Bahrain?", "answers": ["Manama"], "relation": "P36"}
      -> Fact(..., subject="Bahrain")               the subject, by a known question template
      -> Rendering("Question: Which city is the capital of Bahrain? Answer:", " Manama")
      -> Rendering("The capital of Bahrain is", " Manama", ".")

A rendering keeps prompt, answer and remainder separate, so that they are tokenised separately and
the answer's tokens are known exactly. The templates are data: `embedded/relations.yaml`, or a file
of the same form named in the settings.
"""

import re
from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import yaml

from triptych import ROOT
from triptych.datamodules.remember.facts.answer_place import NoAnswerPlaceError, answer_place
from triptych.datamodules.remember.facts.question_frames import framed

BUILT_IN_RELATIONS = ROOT / "datamodules" / "embedded" / "relations.yaml"
# Ten times faster on the built-in file, if PyYAML was built with libyaml.
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

QuestionSet = Literal["training", "held_out", "own_question"]
Reply = Literal["statement", "answer"]


@dataclass(frozen=True, slots=True)
class Fact:
    """A question with its accepted answers.

    Attributes:
        id: Name of the fact in errors, reports and ledgers.
        question: The source's question.
        answers: Accepted answers; training teaches the first.
        statement: The source's statement of the fact, which contains one of the answers.
        relation: The relation as the source names it ("capital", "P36").
        subject: The subject as it reads inside a sentence ("the Bahamas").
        answer_in_statement: The answer as the statement writes it; None: it is found.
        rephrasings: Further wordings of the question.
        held_out: Wordings of the question that are never taught.
        sentences: Further statements.
        locality: Neighbours, of which the model should say what it said before.
        portability: Questions that follow from the fact.
        place: File and line of the row.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    statement: str | None = None
    relation: str | None = None
    subject: str | None = None
    answer_in_statement: str | None = None
    rephrasings: tuple[str, ...] = ()
    held_out: tuple[str, ...] = ()
    sentences: tuple[str, ...] = ()
    locality: tuple["FollowUp", ...] = ()
    portability: tuple["FollowUp", ...] = ()
    place: str = field(default="", compare=False)


@dataclass(frozen=True, slots=True)
class FollowUp:
    """A question beside a fact, as in KnowEdit's `locality` and `portability`.

    Attributes:
        prompt: The question, or the beginning of a sentence.
        answers: Accepted answers; of a neighbour perhaps none.
    """

    prompt: str
    answers: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Rendering:
    """A wording of a fact, cut at its answer; the text is the three parts joined.

    Attributes:
        prompt: The text before the answer, without trailing space.
        answer: The answer, with its leading space.
        remainder: The text after the answer, such as a full stop.
        chat: Whether `prompt` is a user's message, and `lead`, `answer` and `remainder` are the
            reply, in the tokenizer's chat template.
        lead: The text of a reply before the answer.
    """

    prompt: str
    answer: str
    remainder: str = ""
    chat: bool = False
    lead: str = ""

    @property
    def reply(self) -> str:
        """The reply of a wording in chat form."""
        return (self.lead + self.answer + self.remainder).strip()

    @property
    def text(self) -> str:
        """The wording.

        >>> Rendering("The capital of France is", " Paris", ".").text
        'The capital of France is Paris.'
        """
        return f"{self.prompt}\n{self.reply}" if self.chat else self._joined

    @property
    def _joined(self) -> str:
        return self.prompt + self.answer + self.remainder


def question_rendering(question: str, answer: str) -> Rendering:
    """Write a fact as a question; the prompt ends with the marker "Answer:".

    >>> question_rendering("Who wrote Emma?", "Jane Austen").text
    'Question: Who wrote Emma? Answer: Jane Austen'
    """
    return Rendering(f"Question: {question} Answer:", f" {answer}")


def statement_rendering(
    statement: str, answers: Iterable[str], given: str | None = None
) -> Rendering | None:
    """Cut a sentence at its answer, if the place of the answer is beyond doubt.

    Arguments are those of `answer_place.answer_place`, which says why there is no such place.

    Returns:
        The rendering, or None if the sentence cannot be cut.

    >>> statement_rendering("Emma is by Austen.", ["Jane Austen", "Austen"])
    Rendering(prompt='Emma is by', answer=' Austen', remainder='.', chat=False, lead='')
    """
    try:
        before, answer, after = answer_place(statement, answers, given)
    except NoAnswerPlaceError:
        return None
    prompt = before.rstrip(" ")
    return Rendering(prompt, before[len(prompt) :] + answer, after)


def fill(template: str, subject: str, answer: str = "") -> str:
    """Put a subject (and answer) into a template; capitalise a leading "the".

    >>> fill("{subject} has its capital in {answer}.", "the Bahamas", "Nassau")
    'The Bahamas has its capital in Nassau.'
    """
    text = template.replace("{answer}", answer).replace("{subject}", subject)
    return "T" + text[1:] if text.startswith("the ") else text


@dataclass(frozen=True)
class Relation:
    """The templates of one relation; `embedded/relations.yaml` explains each list."""

    name: str
    statements: list[str]
    questions: list[str]
    held_out: list[str]
    also: list[str] = field(default_factory=list)
    asked_as: list[str] = field(default_factory=list)

    def recover_subject(self, question: str) -> str | None:
        """Find the subject of a question that follows one of the relation's templates.

        Of several templates that fit, the most specific one counts: it gives the shortest subject.
        """
        found = [m["subject"] for p in self._patterns if (m := p.fullmatch(question.strip()))]
        return min(found, key=len, default=None)

    @cached_property
    def _patterns(self) -> list[re.Pattern[str]]:
        templates = [*self.asked_as, *self.questions, *self.held_out]
        return [
            re.compile(re.escape(t).replace(r"\{subject\}", "(?P<subject>.+)")) for t in templates
        ]


class FactTemplates:
    """The templates of all known relations.

    A fact of an unknown relation has only the source's question, and its statement if there is one.
    So has a fact without a subject, given or recoverable from its question.

    Args:
        relations: The relations with their templates.

    Raises:
        ValueError: if two relations claim the same name or id.
    """

    #: Whether questions are asked in chat form, and what is taught as the reply.
    chat: bool = False
    reply: Reply = "statement"

    def __init__(self, relations: Iterable[Relation]) -> None:
        self.relations = {relation.name: relation for relation in relations}
        self._by_id: dict[str, Relation] = {}
        for relation in self.relations.values():
            for known_as in (relation.name, *relation.also):
                if known_as in self._by_id:
                    raise ValueError(
                        f"relation id {known_as!r} is claimed by both "
                        f"{self._by_id[known_as].name!r} and {relation.name!r}: keep it in one"
                    )
                self._by_id[known_as] = relation

    @classmethod
    def from_file(cls, path: str | Path | None = None) -> "FactTemplates":
        """Read templates from a YAML file; None reads the built-in ones.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if an entry does not have the form that the built-in file describes.
        """
        path = Path(path) if path is not None else BUILT_IN_RELATIONS
        if not path.is_file():
            raise FileNotFoundError(
                f"no templates at {str(path)!r}: give a file that exists, or null"
            )
        entries = yaml.load(path.read_text(encoding="utf-8"), Loader=_LOADER)
        if not isinstance(entries, dict):
            raise ValueError(f"{path}: expected a mapping from relation names to their templates")
        return cls([_parse_relation(path, str(name), entry) for name, entry in entries.items()])

    def in_form(self, chat: bool, reply: Reply = "statement") -> "FactTemplates":
        """Return the templates in another form.

        Args:
            chat: Whether questions are asked in chat form.
            reply: What is taught as the reply in chat form: the fact's "statement", if it has one,
                or the "answer" alone.
        """
        other = copy(self)
        other.chat, other.reply = chat, reply
        return other

    def relation_of(self, fact: Fact) -> Relation | None:
        """Return the fact's relation with its templates, or None if it is unknown."""
        return self._by_id.get(fact.relation) if fact.relation is not None else None

    def with_subject(self, fact: Fact) -> Fact:
        """Fill in the subject from the question, if the source gives none."""
        relation = self.relation_of(fact)
        if fact.subject is not None or relation is None:
            return fact
        return replace(fact, subject=relation.recover_subject(fact.question))

    def statements(self, fact: Fact) -> list[Rendering]:
        """List the statements of a fact: the source's first, then those of the templates."""
        given = fact.answer_in_statement
        own = statement_rendering(fact.statement, fact.answers, given) if fact.statement else None
        renderings = [own] if own is not None else []
        further = (statement_rendering(text, fact.answers) for text in fact.sentences)
        renderings += [rendering for rendering in further if rendering is not None]
        relation = self.relation_of(fact)
        if relation is None or fact.subject is None:
            return renderings
        for template in relation.statements:
            before, after = fill(template, fact.subject, "\0").split("\0")
            prompt = before.rstrip(" ")
            answer = before[len(prompt) :] + fact.answers[0]
            renderings.append(Rendering(prompt, answer, after))
        return renderings

    def question_texts(self, fact: Fact, question_set: QuestionSet = "training") -> list[str]:
        """List the questions of a fact that belong to one set.

        Training uses the templates alone where there are any, so that the source's question cannot
        bring a held-out question into training. A fact without templates has the source's question
        for training. Its rephrasings are taught, except those that the row holds out; if it holds
        out none, the last third is (at least one). In chat form, a fact with few wordings gets
        those of `question_frames`, of which some are held out too.
        """
        if question_set == "own_question":
            return [fact.question]
        training, held_out = self._own_questions(fact)
        relation = self.relation_of(fact)
        if relation is not None and fact.subject is not None:
            filled = {
                name: [fill(template, fact.subject) for template in templates]
                for name, templates in (("t", relation.questions), ("h", relation.held_out))
            }
            never = {*filled["h"], *held_out}
            training = [*filled["t"], *(text for text in training[1:] if text not in never)]
            held_out = list(dict.fromkeys([*filled["h"], *held_out]))
        elif self.chat:
            training, held_out = framed(fact.question, training, held_out)
        return training if question_set == "training" else held_out

    def _own_questions(self, fact: Fact) -> tuple[list[str], list[str]]:
        """Divide the questions of a row into those to teach, its own first, and the others."""
        held_out = list(fact.held_out)
        further = [text for text in fact.rephrasings if text not in held_out]
        if not held_out and further:
            count = max(1, len(further) // 3)
            further, held_out = further[:-count], further[-count:]
        return [fact.question, *further], held_out

    def questions(self, fact: Fact, question_set: QuestionSet = "training") -> list[Rendering]:
        """List the same questions as renderings, with the fact's first answer."""
        return [self.asked(fact, text) for text in self.question_texts(fact, question_set)]

    def asked(self, fact: Fact, question: str) -> Rendering:
        """Ask a fact by a question, in plain or in chat form."""
        if not self.chat:
            return question_rendering(question, fact.answers[0])
        stated = self.statements(fact)[:1] if self.reply == "statement" else []
        for said in stated:
            space = said.answer[: len(said.answer) - len(said.answer.lstrip())]
            lead, answer = said.prompt + space, said.answer.lstrip()
            return Rendering(question, answer, said.remainder, chat=True, lead=lead)
        return Rendering(question, fact.answers[0], chat=True)


def _parse_relation(path: Path, name: str, entry: Any) -> Relation:
    """Check one entry of a templates file."""
    known = {f.name for f in fields(Relation)} - {"name"}
    required = {"statements", "questions", "held_out"}
    if not isinstance(entry, dict) or not required <= set(entry) <= known:
        raise ValueError(
            f"{path}: relation {name!r} must have the lists {sorted(required)} and may have "
            f"{sorted(known - required)}; it has {sorted(entry) if entry else 'nothing'}"
        )
    for key, templates in entry.items():
        if not isinstance(templates, list) or not all(isinstance(t, str) for t in templates):
            raise ValueError(f"{path}: relation {name!r}, {key!r} must be a list of strings")
        if key == "also":
            continue
        slots = ["{subject}", "{answer}"] if key == "statements" else ["{subject}"]
        for template in templates:
            if re.findall(r"\{\w*\}", template) != slots:
                raise ValueError(
                    f"{path}: relation {name!r}, {key!r}: {template!r} must contain "
                    f"{' and then '.join(slots)}, each once, and no other braces"
                )
    leaked = set(entry["held_out"]) & {*entry["questions"]}
    if leaked:
        raise ValueError(
            f"{path}: relation {name!r} both trains on and holds out {sorted(leaked)}: "
            "remove them from one of the two lists"
        )
    return Relation(name, **entry)
