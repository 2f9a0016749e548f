"""Detection of texts that mention a fact, to keep them from a model that learns it later."""

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable

from triptych.datamodules.remember.facts.fact_templates import Fact


class FactMentions:
    """A detector of texts that contain a fact's subject and one of its answers, as whole words.

    The test is coarse: it also finds texts that contain both without stating the fact, and misses
    texts with other names for either. Facts without a subject are never found.

    Args:
        facts: The facts to detect.

    >>> mentions = FactMentions([Fact("1", "?", ("Nassau",), subject="the Bahamas")])
    >>> mentions.are_in("The Bahamas has its capital in Nassau."), mentions.are_in("Nassau!")
    (True, False)
    """

    def __init__(self, facts: Iterable[Fact]) -> None:
        # Indexed by the subject's first word: most texts contain few of them.
        self._facts: dict[str, list[tuple[str, list[str]]]] = defaultdict(list)
        for fact in facts:
            if fact.subject is not None and (words := _words(fact.subject)):
                answers = [answer.casefold() for answer in fact.answers]
                self._facts[words[0]].append((fact.subject.casefold(), answers))

    def fingerprint(self) -> str:
        """Hash the subjects and answers."""
        return hashlib.sha256(json.dumps(sorted(self._facts.items())).encode()).hexdigest()

    def are_in(self, text: str) -> bool:
        """Return whether the text mentions one of the facts."""
        folded = text.casefold()
        return any(
            _names(folded, subject) and any(_names(folded, answer) for answer in answers)
            for word in self._facts.keys() & set(_words(text))
            for subject, answers in self._facts[word]
        )


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.casefold())


def _names(text: str, name: str) -> bool:
    """Return whether a text contains a name as whole words."""
    return name in text and re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text) is not None
