"""Texts that give a fact away, to be kept from a model that is to learn the fact later."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable

from triptych.datamodules.remember.facts.fact_templates import Fact


class FactMentions:
    """Tells whether a text names both a fact's subject and one of its answers, as whole words.

    That is a coarse net: it also holds texts that name both without saying so, and misses those
    that call either by another name. Facts whose subject is unknown hold nothing.

    Args:
        facts: What must not be given away.

    >>> mentions = FactMentions([Fact("1", "?", ("Nassau",), subject="the Bahamas")])
    >>> mentions.are_in("The Bahamas has its capital in Nassau."), mentions.are_in("Nassau!")
    (True, False)
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        # By the subject's first word, since most texts hold none of most of them.
        self._facts: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        for fact in facts:
            if fact.subject is not None and (words := _words(fact.subject)):
                answers = [answer.casefold() for answer in fact.answers]
                self._facts[words[0]].append((fact.subject.casefold(), answers))

    def fingerprint(self) -> str:
        """Hash what is looked for."""
        return hashlib.sha256(json.dumps(sorted(self._facts.items())).encode()).hexdigest()

    def are_in(self, text: str) -> bool:
        """Whether the text gives one of the facts away."""
        folded = text.casefold()
        return any(
            _names(folded, subject) and any(_names(folded, answer) for answer in answers)
            for word in self._facts.keys() & set(_words(text))
            for subject, answers in self._facts[word]
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _names(text: str, name: str) -> bool:
    """Whether a text holds a name that is not part of a longer word."""
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
