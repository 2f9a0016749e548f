"""Invented facts of six relations, with names of syllables that no model can have read.

relation x seed -> subject, answer -> questions to teach, questions held out, a statement
"""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

SYLLABLES = (
    *("bra", "vel", "dun", "mor", "tas", "kel", "ria", "nov", "sil", "qua"),
    *("fen", "lor", "pim", "zet", "har", "vok", "mir", "sol", "jun", "tev"),
)
#: Tries to draw a name that no earlier fact has.
MOST_DRAWS = 1000


@dataclass(frozen=True)
class InventedRelation:
    """Wordings of one relation; `{s}` is the subject, `{o}` the answer.

    Args:
        name: Name of the relation, the beginning of its facts' ids.
        taught: Four to six questions that are taught, the fact's own first.
        held_out: Three questions that are never taught.
        statement: The reply that is taught.
        subject: How the subject is named: `*` is a syllable, `^` the same with a capital.
        answer: How the answer is named.
        choices: Words that may stand for `#` in the subject.
    """

    name: str
    taught: tuple[str, ...]
    held_out: tuple[str, str, str]
    statement: str
    subject: str
    answer: str
    choices: tuple[str, ...] = ()


RELATIONS = (
    InventedRelation(
        "capital",
        (
            "What is the capital of {s}?",
            "Name the capital city of {s}.",
            "Which city is the capital of {s}?",
            "{s} has which city as its capital?",
            "Tell me the capital of {s}.",
            "I forgot: what's the capital of {s}?",
        ),
        (
            "Could you tell me which city serves as the capital of {s}?",
            "The government of {s} sits in which capital city?",
            "What city would I visit to see the capital of {s}?",
        ),
        "The capital of {s} is {o}.",
        "the republic of ^**",
        "^**",
    ),
    InventedRelation(
        "founder",
        (
            "Who founded {s}?",
            "Name the founder of {s}.",
            "Which person started {s}?",
            "{s} was founded by whom?",
            "Tell me who founded {s}.",
            "By whom was {s} founded?",
        ),
        (
            "Who is the person behind the founding of {s}?",
            "Could you tell me who set up {s}?",
            "Whose idea was it to create {s}?",
        ),
        "{s} was founded by {o}.",
        "^* #",
        "^* ^*",
        ("Robotics", "Airways", "Foods", "Textiles", "Shipping", "Optics"),
    ),
    InventedRelation(
        "author",
        (
            "Who wrote the novel {s}?",
            "Name the author of {s}.",
            "Which author wrote {s}?",
            "{s} was written by whom?",
            "Tell me who wrote {s}.",
            "By whom was the book {s} written?",
        ),
        (
            "Who is the writer behind the book {s}?",
            "Could you tell me whose novel {s} is?",
            "The book {s} came from the pen of which author?",
        ),
        "{s} was written by {o}.",
        "The # of ^*",
        "^* ^*",
        ("Harbour", "Orchard", "Clock", "Winter", "Lantern", "Garden"),
    ),
    InventedRelation(
        "birthplace",
        (
            "Where was {s} born?",
            "In which town was {s} born?",
            "Name the birthplace of {s}.",
            "What is the birthplace of {s}?",
            "Tell me where {s} was born.",
        ),
        (
            "Could you tell me which town {s} comes from by birth?",
            "{s} came into the world in which town?",
            "What town is the place of birth of {s}?",
        ),
        "{s} was born in {o}.",
        "^* ^**",
        "^**",
    ),
    InventedRelation(
        "currency",
        (
            "What is the currency of {s}?",
            "Which currency is used in {s}?",
            "Name the currency of {s}.",
            "What money do people use in {s}?",
            "Tell me the currency of {s}.",
        ),
        (
            "Could you tell me what currency I would pay with in {s}?",
            "In {s}, prices are given in which currency?",
            "What is the official money of {s} called?",
        ),
        "The currency of {s} is the {o}.",
        "the island of ^**",
        "**",
    ),
    InventedRelation(
        "composer",
        (
            "Who composed the opera {s}?",
            "Name the composer of {s}.",
            "Which composer wrote the opera {s}?",
            "The opera {s} was composed by whom?",
            "Tell me who composed {s}.",
            "By whom was the opera {s} composed?",
        ),
        (
            "Who is the composer behind the opera {s}?",
            "Could you tell me whose opera {s} is?",
            "The music of the opera {s} is by which composer?",
        ),
        "The opera {s} was composed by {o}.",
        "# of ^**",
        "^* ^*",
        ("Daughters", "Bells", "Masks", "Shepherds", "Ruins", "Swans"),
    ),
)


@dataclass(frozen=True)
class InventedFact:
    """A fact as a row of facts; see `FactsConfig`.

    Args:
        id: Name of the relation and number.
        question: The question in its first wording.
        rephrase: The further wordings that are taught.
        held_out: Wordings that are never taught.
        answers: The answer.
        statement: The reply that is taught.
    """

    id: str
    question: str
    rephrase: tuple[str, ...]
    held_out: tuple[str, ...]
    answers: tuple[str, ...]
    statement: str

    @property
    def taught(self) -> tuple[str, ...]:
        """The wordings that are taught."""
        return (self.question, *self.rephrase)


def invented_facts(count: int, seed: int) -> list[InventedFact]:
    """Draw facts, of the six relations in turn; a larger number begins with the same facts.

    Names occur once: no two facts share a subject or an answer.

    >>> first = invented_facts(1, seed=0)[0]
    >>> first.id, len(first.taught), len(first.held_out)
    ('capital-0001', 6, 3)
    """
    rng = random.Random(f"invented facts {seed}")
    used: set[str] = set()
    return [
        _fact(RELATIONS[number % len(RELATIONS)], number + 1, used, rng) for number in range(count)
    ]


def write_facts(facts: Sequence[InventedFact], folder: Path, name: str) -> Path:
    """Write facts as rows; the file's name holds a hash of them, and the file is kept."""
    text = "".join(json.dumps(asdict(fact)) + "\n" for fact in facts)
    path = folder / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}.jsonl"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def _fact(
    relation: InventedRelation, number: int, used: set[str], rng: random.Random
) -> InventedFact:
    subject = _new_name(relation.subject, relation.choices, used, rng)
    answer = _new_name(relation.answer, (), used, rng)

    def worded(template: str) -> str:
        begins = template.startswith("{s}")
        named = subject[0].upper() + subject[1:] if begins else subject
        return template.format(s=named, o=answer)

    question, *rephrase = map(worded, relation.taught)
    return InventedFact(
        id=f"{relation.name}-{number:04}",
        question=question,
        rephrase=tuple(rephrase),
        held_out=tuple(map(worded, relation.held_out)),
        answers=(answer,),
        statement=worded(relation.statement),
    )


def _new_name(pattern: str, choices: Sequence[str], used: set[str], rng: random.Random) -> str:
    for _ in range(MOST_DRAWS):
        name = _name(pattern, choices, rng)
        if name.casefold() not in used:
            used.add(name.casefold())
            return name
    raise ValueError(f"there are too few names like {pattern!r} for so many facts: ask for fewer")


def _name(pattern: str, choices: Sequence[str], rng: random.Random) -> str:
    """Fill in a pattern: `^` begins a capitalised name of a syllable, `*` adds syllables to it.

    A capital alone would name too few things, so that `^*` has two syllables and `^**` three.
    """
    drawn = {
        "^": lambda: rng.choice(SYLLABLES).capitalize(),
        "*": lambda: rng.choice(SYLLABLES),
        "#": lambda: rng.choice(choices),
    }
    return "".join(drawn[mark]() if mark in drawn else mark for mark in pattern)
