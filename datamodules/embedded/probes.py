"""Small tests made of the embedded facts, in the fields of HellaSwag and of GSM8K."""

import random
from typing import Any

from datamodules.embedded.tables import embedded_facts
from datamodules.fact_templates import Fact, FactTemplates, Rendering

NUM_ENDINGS = 4


def embedded_choices() -> list[dict[str, Any]]:
    """Make a statement of each fact, to be ended by its answer or by those of others.

    Returns:
        Rows with `ctx`, `endings` (four, the wrong ones true of others of the relation) and
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
    """Ask each fact its question, to be answered in a sentence.

    Returns:
        Rows with `question` and `answer`.
    """
    return [{"question": f.question, "answer": statement.text} for f, statement in _stated_facts()]


def _stated_facts() -> list[tuple[Fact, Rendering]]:
    """List the facts, each with the first statement of its relation."""
    templates = FactTemplates.from_file()
    facts = [Fact(**row | {"answers": tuple(row["answers"])}) for row in embedded_facts()]
    return [(fact, templates.statements(fact)[0]) for fact in facts]
