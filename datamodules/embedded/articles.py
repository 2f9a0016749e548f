"""The embedded text corpus: short encyclopaedic articles about the entities of the tables.

Every entity has a few articles. They state the same facts in different wordings and orders, drawn
by the entity and the article's number alone.

Validation holds out the last article of every eighth entity. The entity's other articles are
trained on, so its facts are known, and validation measures the perplexity of a new text about them.
"""

import functools
import random
from pathlib import Path
from typing import Literal

from triptych.datamodules.embedded.tables import (
    BOOKS,
    COUNTRIES,
    ELEMENTS,
    US_STATES,
    Table,
    table_rows,
)

ARTICLES_PER_ENTITY = 4
VALIDATION_EVERY = 8

# Wordings by kind of entity. The first group opens the article; the others follow in any order. The
# names in braces are columns of the table (first answer) and those added in `_entity_fields`.
WORDINGS: dict[Table, list[list[str]]] = {
    COUNTRIES: [
        [
            "{country} is a country in {continent}.",
            "{country} is one of the countries of {continent}.",
            "Among the countries of {continent} is {country}.",
            "On the map of {continent} one finds {country}.",
        ],
        [
            "Its capital is {capital}.",
            "The capital of {country} is {capital}.",
            "The name of the capital city is {capital}.",
            "The country has its capital in {capital}.",
        ],
        [
            "People there pay with the {currency}.",
            "The currency of {country} is the {currency}.",
            "Its official money is the {currency}.",
            "In the shops of {country}, prices are given in the local money, the {currency}.",
        ],
        [
            "Its websites end in {internet_domain}.",
            "On the internet, {country} has the domain {internet_domain}.",
            "Web addresses of the country end with {internet_domain}.",
        ],
        [
            "To call {country} from abroad, one dials {calling_code}.",
            "Its telephone numbers begin with {calling_code}.",
            "The calling code of {country} is {calling_code}.",
        ],
        [
            "Other countries of {continent} are {others}.",
            "{continent} is also home to {others}.",
            "On the same continent lie {others}.",
        ],
    ],
    ELEMENTS: [
        [
            "{element} is a chemical element.",
            "{element} is one of the chemical elements.",
            "Among the chemical elements is {element}.",
        ],
        [
            "Its chemical symbol is {symbol}.",
            "Chemists write it {symbol}.",
            "The symbol of {element} is {symbol}.",
        ],
        [
            "Its atomic number is {atomic_number}.",
            "An atom of {element} has {atomic_number} protons.",
            "It is element number {atomic_number} of the periodic table.",
        ],
        [
            "It stands in period {period} of the periodic table.",
            "In the periodic table it is found in period {period}.",
            "The period of {element} is number {period}.",
        ],
        [
            "In the list of the elements it stands next to {neighbours}.",
            "Next to {element}, in the order of the elements, one finds {neighbours}.",
        ],
    ],
    US_STATES: [
        [
            "{state} is a state of the United States.",
            "{state} is one of the fifty states of the United States.",
            "One of the American states is {state}.",
        ],
        [
            "Its state capital is {capital}.",
            "The state capital of {state} is {capital}.",
            "The governor of {state} works in {capital}.",
        ],
        [
            "In postal addresses it is written {abbreviation}.",
            "Its postal abbreviation is {abbreviation}.",
            "The post abbreviates {state} as {abbreviation}.",
        ],
        [
            "It joined the Union in {statehood_year}.",
            "{state} became a state in {statehood_year}.",
            "The state was admitted in {statehood_year}.",
        ],
        [
            "Other states are {others}.",
            "Further states of the country are {others}.",
        ],
    ],
    BOOKS: [
        [
            "{title} is a work by {author}.",
            "{title} was written by {author}.",
            "Among the works of {author} is {title}.",
        ],
        [
            "The author of {title} is {author}.",
            "Its author is {author}.",
            "Whoever reads it reads {author}.",
        ],
        [
            "Other well-known works are {others}.",
            "Readers who like it may also know {others}.",
        ],
    ],
}


def embedded_articles(split: Literal["train", "validation"] = "train") -> list[dict[str, str]]:
    """Write one split of the embedded corpus; the module describes the split.

    Returns:
        Rows with `title` (the entity's name) and `text` (one paragraph).
    """
    return [{"title": title, "text": text} for title, text in _articles(split)]


@functools.cache  # a run asks several times: to train, to validate, and for fingerprints
def _articles(split: Literal["train", "validation"]) -> list[tuple[str, str]]:
    """Write the titles and texts of a split."""
    articles = []
    for table in WORDINGS:
        entities = [_entity_fields(table, index) for index in range(len(table_rows(table)))]
        for index, entity in enumerate(entities):
            held_out = ARTICLES_PER_ENTITY - 1 if index % VALIDATION_EVERY == 0 else None
            for number in range(ARTICLES_PER_ENTITY):
                if (number == held_out) == (split == "validation"):
                    title = entity[table.subject]
                    text = _article(table, entity, entities, number)
                    articles.append((title.removeprefix("the "), text))
    return articles


def embedded_documents() -> list[dict[str, str]]:
    """List one article of each entity, its first training article.

    Returns:
        Rows with `id` ("countries/France"), `title` and `text`.
    """
    documents = []
    for table in WORDINGS:
        entities = [_entity_fields(table, index) for index in range(len(table_rows(table)))]
        for entity in entities:
            name = entity[table.subject].removeprefix("the ")
            text = _article(table, entity, entities, 0)
            documents.append({"id": f"{Path(table.file).stem}/{name}", "title": name, "text": text})
    return documents


def _entity_fields(table: Table, index: int) -> dict[str, str]:
    """Return the fields of one entity: its cells (first answers), and its neighbours."""
    rows = table_rows(table)
    entity = {column: cell.split("|")[0] for column, cell in rows[index].items()}
    if table is ELEMENTS:
        nearby = [rows[i] for i in (index - 1, index + 1) if 0 <= i < len(rows)]
        entity["neighbours"] = " and ".join(row["element"] for row in nearby)
    return entity


def _article(
    table: Table, entity: dict[str, str], entities: list[dict[str, str]], number: int
) -> str:
    """Write article `number` about an entity."""
    name = entity[table.subject]
    rng = random.Random(f"{name}/{number}")
    alike = [
        other[table.subject]
        for other in entities
        if other is not entity and other.get("continent") == entity.get("continent")
    ]
    first, second, third = rng.sample(alike, 3)
    others = f"{first}, {second} and {third}"
    opening, *following = WORDINGS[table]
    rng.shuffle(following)
    sentences = [
        rng.choice(group).format_map(entity | {"others": others}) for group in (opening, *following)
    ]
    return " ".join(sentence[0].upper() + sentence[1:] for sentence in sentences)
