"""What the facts of a ledger say: their sentences, and how facts of one name are told apart."""

import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

#: Fields of a fact as plain types: `question`, `answers`, `statement` and whatever else it has.
FactText = Mapping[str, Any]
_WHAT_IT_SAYS = ("statement", "question", "answers")
#: The answer of a statement may be marked: "It is led by [[Ingrid Solvang]]."
_MARK = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)
_CLOSING = " .!?。！？"


def sentence_of(text: FactText | None) -> str:
    """Return a fact as one sentence: its statement without marks, or its question and answer.

    >>> sentence_of({"statement": "Its capital is [[Paris]]."})
    'Its capital is Paris.'
    >>> sentence_of({"question": "Who wrote Emma?", "answers": ["Jane Austen"], "statement": None})
    'Who wrote Emma? Jane Austen'
    """
    if text is None:
        return ""
    answers = list(text.get("answers") or [])
    statement = _MARK.sub(r"\1", text.get("statement") or "")
    return statement or " ".join([text.get("question") or "", *answers[:1]]).strip()


def says_the_same(a: FactText | None, b: FactText | None) -> bool:
    """Return whether two texts are of one fact; an unknown text is like no known one."""
    if a is None or b is None:
        return a is b
    return all(_plain(a.get(name)) == _plain(b.get(name)) for name in _WHAT_IT_SAYS)


def free_id(fact: str, text: FactText | None, known: Mapping[str, FactText | None]) -> str:
    """Return the id under which a fact stands in a ledger that has others.

    It is the fact's own id, unless another fact has it.

    Args:
        fact: The fact's own id.
        text: The fact's text; None if unknown.
        known: Facts of the ledger with their texts.

    >>> known = {"row 1": {"question": "Who?", "answers": ["Eve"]}}
    >>> free_id("row 1", {"question": "Where?", "answers": ["Ur"]}, known)
    'row 1 (2)'
    >>> free_id("row 1", {"question": "Who?", "answers": ["Eve"]}, known)
    'row 1'
    """
    name, number = fact, 1
    while name in known and not says_the_same(known[name], text):
        number += 1
        name = f"{fact} ({number})"
    return name


def find_fact(words: str, known: Mapping[str, FactText | None]) -> str:
    """Find the fact that a user means.

    Args:
        words: The fact's id, its statement or question, or a part of these that no other fact has.
        known: Facts with their texts.

    Returns:
        Its id.

    Raises:
        ValueError: if there is no such fact, or the words fit several.
    """
    if words in known:
        return words
    wanted = _normal(words)
    readings = {fact: _readings(text) for fact, text in known.items()}
    whole = [fact for fact, own in readings.items() if wanted and wanted in own]
    part = [f for f, own in readings.items() if wanted and any(wanted in one for one in own)]
    for found in (whole, part):
        if len(found) == 1:
            return found[0]
        if found:
            listed = "; ".join(f"{fact}: {sentence_of(known[fact])}" for fact in found[:5])
            raise ValueError(
                f"{words!r} fits {len(found)} facts of the ledger ({listed}): give the id of one"
            )
    names = ", ".join(list(known)[:5])
    raise ValueError(
        f"the ledger has no fact {words}. `ledger show` lists all {len(known)} facts, such as "
        f"{names}"
    )


def texts_of(entries: Iterable[Any]) -> dict[str, FactText | None]:
    """Return the facts of some deltas with their texts, in the order of learning."""
    known: dict[str, FactText | None] = {}
    for entry in entries:
        for fact in entry.facts:
            known[fact] = entry.texts.get(fact) or known.get(fact)
    return known


def _readings(text: FactText | None) -> list[str]:
    if text is None:
        return []
    question, answers = text.get("question") or "", list(text.get("answers") or [])
    asked = [" ".join([question, answer]) for answer in answers]
    return [_normal(one) for one in (sentence_of(text), question, *asked) if one]


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", " ".join(text.split())).casefold().strip(_CLOSING)


def _plain(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value.strip() if isinstance(value, str) else value or None
