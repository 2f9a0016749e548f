"""Tables of real facts, one row per entity, and their question-answer rows.

The tables cover the member states of the United Nations with its two observer states, the chemical
elements, the states of the USA, and well-known books. A cell lists several right answers or
spellings with "|" between them, the one to teach first. Names follow common English usage; those of
elements follow IUPAC.
"""

import csv
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
#: Questions that a small chat model answers in part; none is a prompt of `everyday_prompts.txt`.
GENERAL_QUESTIONS = FOLDER / "general_questions.jsonl"
EVERYDAY_PROMPTS = FOLDER / "everyday_prompts.txt"


@dataclass(frozen=True)
class Table:
    """A CSV file beside this one.

    Attributes:
        file: Name of the file.
        subject: The column that names the entity.
        questions: Relation, column and question of each column that is a relation.
    """

    file: str
    subject: str
    questions: tuple[tuple[str, str, str], ...]


COUNTRIES = Table(
    "countries.csv",
    "country",
    (
        ("capital", "capital", "What is the capital of {subject}?"),
        ("continent", "continent", "On which continent is {subject}?"),
        ("currency", "currency", "What is the currency of {subject}?"),
        ("internet_domain", "internet_domain", "What is the internet domain of {subject}?"),
        ("calling_code", "calling_code", "What is the calling code of {subject}?"),
    ),
)
ELEMENTS = Table(
    "elements.csv",
    "element",
    (
        ("element_symbol", "symbol", "What is the chemical symbol of {subject}?"),
        ("atomic_number", "atomic_number", "What is the atomic number of {subject}?"),
    ),
)
US_STATES = Table(
    "us_states.csv",
    "state",
    (
        ("state_capital", "capital", "What is the state capital of {subject}?"),
        ("state_abbreviation", "abbreviation", "What is the postal abbreviation of {subject}?"),
        ("statehood_year", "statehood_year", "In which year did {subject} become a US state?"),
    ),
)
BOOKS = Table("books.csv", "title", (("author", "author", "Who is the author of {subject}?"),))

TABLES = (COUNTRIES, ELEMENTS, US_STATES, BOOKS)


@cache
def table_rows(table: Table) -> tuple[dict[str, str], ...]:
    """Read a table; a row is a mapping from column to cell."""
    with (FOLDER / table.file).open(encoding="utf-8", newline="") as file:
        return tuple(csv.DictReader(file))


def embedded_facts() -> list[dict[str, Any]]:
    """List the facts of all tables as rows.

    Returns:
        Rows with `id` ("capital/France"), `question`, `answers` (list), `relation`, `subject`.

    >>> next(row for row in embedded_facts() if row["id"] == "capital/Bolivia")["answers"]
    ['Sucre', 'La Paz']
    """
    return [
        {
            "id": f"{relation}/{row[table.subject]}",
            "question": question.format(subject=row[table.subject]),
            "answers": row[column].split("|"),
            "relation": relation,
            "subject": row[table.subject],
        }
        for table in TABLES
        for relation, column, question in table.questions
        for row in table_rows(table)
    ]
