"""The embedded tables against hand-written constants, and their articles."""

from collections import Counter

import pytest

from triptych.datamodules.embedded.articles import (
    ARTICLES_PER_ENTITY,
    VALIDATION_EVERY,
    embedded_articles,
)
from triptych.datamodules.embedded.tables import TABLES, embedded_facts, table_rows
from triptych.datamodules.remember.facts.fact_templates import FactTemplates
from triptych.metrics.question_answering import normalize_answer

ANSWERS = {row["id"]: row["answers"] for row in embedded_facts()}


@pytest.mark.parametrize(
    ("fact", "answer"),
    [
        ("capital/France", "Paris"),
        ("capital/Australia", "Canberra"),
        ("capital/Kazakhstan", "Astana"),
        ("capital/Burkina Faso", "Ouagadougou"),
        ("capital/the United States", "Washington, D.C."),
        ("continent/Egypt", "Africa"),
        ("continent/Suriname", "South America"),
        ("continent/Vanuatu", "Oceania"),
        ("currency/Japan", "Japanese yen"),
        ("currency/Ecuador", "United States dollar"),
        ("currency/Croatia", "euro"),
        ("internet_domain/Germany", ".de"),
        ("internet_domain/the United Kingdom", ".uk"),
        ("internet_domain/Switzerland", ".ch"),
        ("calling_code/Norway", "+47"),
        ("calling_code/Kenya", "+254"),
        ("calling_code/Jamaica", "+1-876"),
        ("element_symbol/tungsten", "W"),
        ("element_symbol/sodium", "Na"),
        ("element_symbol/lead", "Pb"),
        ("atomic_number/gold", "79"),
        ("atomic_number/uranium", "92"),
        ("atomic_number/oganesson", "118"),
        ("state_capital/Georgia", "Atlanta"),
        ("state_capital/Oregon", "Salem"),
        ("state_abbreviation/Missouri", "MO"),
        ("state_abbreviation/Nebraska", "NE"),
        ("statehood_year/Hawaii", "1959"),
        ("statehood_year/Delaware", "1787"),
        ("author/Middlemarch", "George Eliot"),
        ("author/The Trial", "Franz Kafka"),
    ],
)
def test_fact_is_right(fact, answer):
    assert ANSWERS[fact][0] == answer


def test_other_right_answers_are_accepted():
    assert ANSWERS["capital/Bolivia"] == ["Sucre", "La Paz"]
    assert {"Pretoria", "Cape Town", "Bloemfontein"} == set(ANSWERS["capital/South Africa"])
    assert "Kiev" in ANSWERS["capital/Ukraine"]
    assert "Asia" in ANSWERS["continent/Russia"]


def test_relations_are_complete():
    per_relation = Counter(row["relation"] for row in embedded_facts())
    assert per_relation == {
        **dict.fromkeys(
            ["capital", "continent", "currency", "internet_domain", "calling_code"], 195
        ),
        **dict.fromkeys(["element_symbol", "atomic_number"], 118),
        **dict.fromkeys(["state_capital", "state_abbreviation", "statehood_year"], 50),
        "author": 149,
    }


def test_nothing_is_said_twice():
    for table in TABLES:
        subjects = Counter(row[table.subject].lower() for row in table_rows(table))
        assert subjects.most_common(1)[0][1] == 1, table.file
    questions = Counter(row["question"] for row in embedded_facts())
    assert questions.most_common(1)[0][1] == 1
    for relation in ("internet_domain", "element_symbol", "atomic_number", "state_abbreviation"):
        firsts = [a[0] for fact, a in ANSWERS.items() if fact.startswith(f"{relation}/")]
        assert len(set(firsts)) == len(firsts), relation


def test_cells_are_tidy_and_survive_normalisation():
    for table in TABLES:
        for row in table_rows(table):
            for column, cell in row.items():
                values = cell.split("|")
                assert all(value and value == value.strip() for value in values), (column, cell)
                assert len(set(values)) == len(values), (column, cell)
                assert all(normalize_answer(value) for value in values), (column, cell)


def test_every_question_is_one_its_templates_train_on():
    templates = FactTemplates.from_file()
    for table in TABLES:
        for relation, _, question in table.questions:
            assert question in templates.relations[relation].questions


def test_elements_stand_in_order():
    elements = table_rows(next(table for table in TABLES if table.file == "elements.csv"))
    assert [int(row["atomic_number"]) for row in elements] == list(range(1, 119))
    last_of_period = {row["period"]: row["element"] for row in elements}
    assert list(last_of_period.values()) == [
        "helium", "neon", "argon", "krypton", "xenon", "radon", "oganesson"
    ]  # fmt: skip


def test_article_splits():
    num_entities = [len(table_rows(table)) for table in TABLES]
    train, validation = embedded_articles("train"), embedded_articles("validation")
    assert len(validation) == sum(-(-count // VALIDATION_EVERY) for count in num_entities)
    assert len(train) + len(validation) == sum(num_entities) * ARTICLES_PER_ENTITY
    assert not {row["text"] for row in train} & {row["text"] for row in validation}
    assert {row["title"] for row in validation} <= {row["title"] for row in train}


def test_articles_are_the_same_each_time_and_tell_the_facts():
    articles = embedded_articles()
    assert articles == embedded_articles()
    about_france = [row["text"] for row in articles if row["title"] == "France"]
    assert len(about_france) == ARTICLES_PER_ENTITY
    assert len(set(about_france)) == ARTICLES_PER_ENTITY
    for text in about_france:
        assert all(fact in text for fact in ("France", "Europe", "Paris", "euro", ".fr", "+33"))
        assert "{" not in text
        assert text[0].isupper()
        assert text.endswith(".")
