"""Rows of the probes of a language model: multiple choice, worked answers, texts (see `records`).

Multiple choice has the fields of HellaSwag, questions with worked answers those of GSM8K, and texts
that of `text_corpus`. `facts.read_facts` reads closed-book questions.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from triptych.datamodules.embedded.articles import embedded_articles
from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates, Rendering
from triptych.datamodules.sources.records import RecordSource, read_records

Item = TypeVar("Item")


@dataclass(frozen=True, slots=True)
class Choice:
    """A text with several endings, one of them right.

    Attributes:
        context: The text before the ending.
        endings: At least two endings.
        label: Index of the right one.
    """

    context: str
    endings: tuple[str, ...]
    label: int


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with an answer to measure the likelihood of.

    Attributes:
        question: The question.
        answer: The answer, which may be long.
    """

    question: str
    answer: str


def read_choices(source: RecordSource) -> list[Choice]:
    """Read rows with `ctx`, `endings` (a list) and `label` (index of the right one).

    A row with `activity_label`, as HellaSwag has it, is worded as in the LM Evaluation Harness: the
    activity precedes the context, which is `ctx_a` and `ctx_b` with a capital letter where the row
    has these, and WikiHow's marks in brackets are left out.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed (file, line and field are named), or there is none.
    """
    required = {"ctx": str, "endings": list[str], "label": int}
    optional = dict.fromkeys(("activity_label", "ctx_a", "ctx_b"), str)
    rows = read_records(source, required, optional, embedded_choices, _choice_fault)
    return [_choice(row) for row in rows]


def without_marks(text: str) -> str:
    """Remove WikiHow's marks from a text of HellaSwag, as the LM Evaluation Harness does.

    >>> without_marks("How to fix a tyre [title] Find the hole. [step] Look closely.")
    'How to fix a tyre. Find the hole. Look closely.'
    """
    text = text.strip().replace(" [title]", ". ")
    return re.sub(r"\[.*?\]", "", text).replace("  ", " ")


def _choice(row: dict[str, Any]) -> Choice:
    context, endings, label = row["ctx"].strip(), row["endings"], row["label"]
    if row["activity_label"] is None:
        return Choice(context, tuple(endings), label)
    if row["ctx_a"] is not None:
        context = f"{row['ctx_a']} {(row['ctx_b'] or '').capitalize()}"
    context = without_marks(f"{row['activity_label']}: {context}")
    return Choice(context, tuple(without_marks(ending) for ending in endings), label)


def read_answered(source: RecordSource) -> list[Answered]:
    """Read rows with `question` and `answer`; errors are those of `read_choices`."""
    required = {"question": str, "answer": str}
    rows = read_records(source, required, embedded=embedded_answers, row_check=_empty_fault)
    return [Answered(row["question"].strip(), row["answer"].strip()) for row in rows]


def read_texts(source: RecordSource) -> list[str]:
    """Read rows with `text`, without blank ones; errors are those of `read_choices`."""
    rows = read_records(source, {"text": str}, embedded=lambda: embedded_articles("validation"))
    texts = [row["text"] for row in rows if row["text"].strip()]
    if not texts:
        raise ValueError(f"no text in {source.path!r}: it holds only white space; give other text")
    return texts


def draw_rows(rows: Sequence[Item], num_rows: int | None, seed: int) -> list[Item]:
    """Draw at most `num_rows` rows by `seed`, in their order.

    >>> draw_rows("abcdef", 3, seed=0) == draw_rows("abcdef", 3, seed=0), draw_rows("ab", 3, seed=0)
    (True, ['a', 'b'])
    """
    if num_rows is None or num_rows >= len(rows):
        return list(rows)
    return [rows[i] for i in sorted(random.Random(seed).sample(range(len(rows)), num_rows))]


def _choice_fault(row: dict[str, Any]) -> str | None:
    endings, label = row["endings"], row["label"]
    if len(endings) < 2:
        return f"field 'endings' has {len(endings)} endings: give at least two"
    if not all(ending.strip() for ending in endings):
        return "field 'endings' has an empty ending"
    if not 0 <= label < len(endings):
        return f"field 'label' is {label}, but there are {len(endings)} endings, counted from 0"
    return None


def _empty_fault(row: dict[str, Any]) -> str | None:
    empty = next((name for name, text in row.items() if not text.strip()), None)
    return f"field {empty!r} is empty" if empty else None


NUM_ENDINGS = 4


def embedded_choices() -> list[dict[str, Any]]:
    """Make multiple choice of statements: each ends with its answer or those of other subjects.

    Returns:
        Rows with `ctx`, `endings` (four; the wrong ones are answers to the same relation) and
        `label`.
    """
    stated = _stated_facts()
    answers: dict[str | None, list[str]] = {}
    for fact, _ in stated:
        answers.setdefault(fact.relation, []).append(fact.answers[0])
    rows = []
    for fact, statement in stated:
        rng = random.Random(fact.id)
        wrong = sorted(set(answers[fact.relation]) - set(fact.answers))
        if len(wrong) < NUM_ENDINGS - 1:
            continue
        endings = [fact.answers[0], *rng.sample(wrong, NUM_ENDINGS - 1)]
        rng.shuffle(endings)
        rows.append(
            {
                "ctx": statement.prompt,
                "endings": [ending + statement.remainder for ending in endings],
                "label": endings.index(fact.answers[0]),
            }
        )
    return rows


def embedded_answers() -> list[dict[str, Any]]:
    """Make questions of the facts, each with a statement as its worked answer.

    Returns:
        Rows with `question` and `answer`.
    """
    return [{"question": f.question, "answer": statement.text} for f, statement in _stated_facts()]


def _stated_facts() -> list[tuple[Fact, Rendering]]:
    """List the facts, each with the first statement of its relation."""
    templates = FactTemplates.from_file()
    facts = [Fact(**row | {"answers": tuple(row["answers"])}) for row in embedded_facts()]
    return [(fact, templates.statements(fact)[0]) for fact in facts]
