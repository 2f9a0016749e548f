"""Reading facts from rows: ids, wordings, and what contradicts itself."""

import hashlib
import json
import re
import unicodedata
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, Literal

from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.facts.answer_place import fault_of
from triptych.datamodules.remember.facts.fact_formats import OPTIONAL, adapted
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates, FollowUp
from triptych.datamodules.sources.records import (
    RecordSource,
    describe,
    read_records,
)

OnContradiction = Literal["warn", "error", "replace"]
_MOST_NAMED = 3


def read_facts(
    source: RecordSource, templates: FactTemplates, on_contradiction: OnContradiction = "warn"
) -> list[Fact]:
    """Read facts; fill in the subjects that follow from the question.

    A fact without an id gets one from its question and answer. A fact that comes twice is read
    once. Of a line of plain text without a mark, a warning says what is taken for the answer.

    Args:
        source: Rows in one of the formats of `fact_formats`.
        templates: Find the subjects.
        on_contradiction: What to do where two facts give one question different answers: "warn",
            "error", or "replace" (keep the later one).

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed (file, line and field are named), two different facts
            have one id, or facts contradict each other and `on_contradiction` is "error".
    """
    paths = [source.path] if isinstance(source.path, str) else source.path
    if source.txt_lines is None and any(re.search(r"\.txt(\.gz)?$", path) for path in paths):
        source = replace(source, txt_lines="statement")
    rows = read_records(
        source,
        required={"question": str, "answers": list[str]},
        optional=OPTIONAL,
        embedded=embedded_facts,
        row_check=_find_fault,
        adapt=adapted,
    )
    facts, guessed = [], []
    for row in rows:
        facts.append(templates.with_subject(_fact(row)))
        if row["_guessed"]:
            guessed.append(f"{row['_place']}: {row['_guessed']!r}, asked {row['question']!r}")
    if guessed:
        warnings.warn(
            f"{len(guessed)} lines of {describe(source)} mark no answer; taken for it: "
            f"{_first(guessed)}. To choose it, put double brackets around it, or write "
            "'question? answer'",
            stacklevel=2,
        )
    return _without_contradictions(_each_once(facts, source), source, on_contradiction)


def with_rephrasings(facts: Sequence[Fact], source: RecordSource) -> list[Fact]:
    """Add the wordings of a source to facts.

    Args:
        facts: The facts.
        source: Rows with `id` (of a fact), and `rephrase` or `questions` (questions), `held_out`
            (questions that are never taught) or `paraphrases` (questions or statements). Rows of
            other facts are skipped.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed, or a statement cannot be cut at its answer.
    """
    by_id = {fact.id: fact for fact in facts}

    def find_fault(row: dict[str, Any]) -> str | None:
        fact = by_id.get(row["id"])
        return _sentence_fault(row["paraphrases"] or (), fact.answers) if fact else None

    lists = {name: list[str] for name in ("rephrase", "held_out", "paraphrases")}
    for row in read_records(source, {"id": str}, lists, row_check=find_fault, adapt=adapted):
        if (fact := by_id.get(row["id"])) is not None:
            by_id[fact.id] = replace(
                fact,
                rephrasings=(*fact.rephrasings, *_different(row["rephrase"])),
                held_out=(*fact.held_out, *_different(row["held_out"])),
                sentences=(*fact.sentences, *_different(row["paraphrases"])),
            )
    return [by_id[fact.id] for fact in facts]


def content_id(question: str, *answers: str) -> str:
    """Make an id from a fact's question and answers, the same in every file and session.

    >>> content_id("Who leads Brightwell Robotics?", "Ingrid Solvang")
    'who-leads-brightwell-robotics-c75a1014'
    """
    words = "-".join(re.findall(r"\w+", question.casefold()))[:40].rstrip("-")
    content = json.dumps([_normal(question), *map(_normal, answers)])
    return f"{words}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def _fact(row: dict[str, Any]) -> Fact:
    question, answers = row["question"].strip(), _accepted_answers(row)
    follow_ups = {
        name: tuple(
            FollowUp(entry["prompt"], tuple(entry["answers"]))
            for entry in json.loads(row[name] or "[]")
        )
        for name in ("locality", "portability")
    }
    held_out = tuple(text for text in _different(row["held_out"]) if text != question)
    return Fact(
        id=row["id"] or content_id(question, *answers),
        question=question,
        answers=answers,
        statement=row["statement"] or None,
        relation=row["relation"],
        subject=row["subject"],
        answer_in_statement=row["answer_in_statement"],
        rephrasings=tuple(text for text in _different(row["rephrase"]) if text != question),
        held_out=held_out,
        sentences=_different(row["paraphrases"]),
        place=row["_place"] or "",
        **follow_ups,
    )


def _different(texts: Iterable[str] | None) -> tuple[str, ...]:
    return tuple(dict.fromkeys(text.strip() for text in texts or () if text.strip()))


def _find_fault(row: dict[str, Any]) -> str | None:
    """Return the fault of a row with correct types, or None."""
    if not row["question"].strip():
        return "field 'question' is empty"
    answers = _accepted_answers(row)
    if not answers:
        return "field 'answers' is empty: give at least one accepted answer"
    if row["statement"]:
        fault = fault_of(row["statement"], answers, row["answer_in_statement"])
        if fault is not None:
            return f"field 'statement' {fault}"
    return _sentence_fault(row["paraphrases"] or (), answers)


def _sentence_fault(sentences: Iterable[str], answers: Sequence[str]) -> str | None:
    for sentence in sentences:
        if (fault := fault_of(sentence, answers)) is not None:
            return f"field 'paraphrases': {sentence!r} {fault}"
    return None


def _accepted_answers(row: dict[str, Any]) -> tuple[str, ...]:
    """List the different answers, the one to teach first."""
    answers = [row["first_answer"] or "", *row["answers"]]
    return tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))


def _each_once(facts: Sequence[Fact], source: RecordSource) -> list[Fact]:
    """Leave out repetitions; refuse different facts with one id."""
    by_id: dict[str, Fact] = {}
    repeated = []
    for fact in facts:
        first = by_id.setdefault(fact.id, fact)
        if first is fact:
            continue
        if (first.question, first.answers) != (fact.question, fact.answers):
            raise ValueError(
                f"{fact.place}: field 'id': {fact.id!r} is the id of another fact, in "
                f"{first.place}: give each fact an id of its own, or none"
            )
        repeated.append(f"{fact.place} repeats {first.place}")
    if repeated:
        warnings.warn(
            f"{len(repeated)} facts of {describe(source)} come twice and are read once: "
            f"{_first(repeated)}",
            stacklevel=3,
        )
    return list(by_id.values())


def _without_contradictions(
    facts: Sequence[Fact], source: RecordSource, on_contradiction: OnContradiction
) -> list[Fact]:
    latest: dict[str, Fact] = {}
    found, replaced = [], set()
    for fact in facts:
        before = latest.get(_normal(fact.question))
        latest[_normal(fact.question)] = fact
        if before is None or {*map(_normal, before.answers)} & {*map(_normal, fact.answers)}:
            continue
        replaced.add(before.id)
        found.append(
            f"{fact.place} answers {fact.question!r} by {fact.answers[0]!r}, {before.place} by "
            f"{before.answers[0]!r}"
        )
    if not found:
        return list(facts)
    message = f"{len(found)} facts of {describe(source)} contradict earlier ones: {_first(found)}"
    if on_contradiction == "error":
        raise ValueError(
            f"{message}: leave one of each out, or set on_contradiction to replace, which keeps "
            "the later one"
        )
    kept = "the later ones are kept" if on_contradiction == "replace" else "both are kept"
    warnings.warn(f"{message} ({kept}; see on_contradiction)", stacklevel=3)
    if on_contradiction == "replace":
        return [fact for fact in facts if fact.id not in replaced]
    return list(facts)


def _normal(text: str) -> str:
    return unicodedata.normalize("NFC", " ".join(text.split())).casefold().rstrip("?？. ")


def _first(messages: Sequence[str]) -> str:
    more = f"; and {len(messages) - _MOST_NAMED} more" if len(messages) > _MOST_NAMED else ""
    return "; ".join(messages[:_MOST_NAMED]) + more
