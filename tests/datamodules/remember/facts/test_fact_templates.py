"""Templates: the form of the built-in file, held-out questions, subjects found in questions."""

import gzip
import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    Rendering,
    question_rendering,
    statement_rendering,
)

TEMPLATES = FactTemplates.from_file()
ENTITY_QUESTIONS = [
    "P17", "P19", "P20", "P26", "P36", "P40", "P50", "P69", "P106", "P112", "P127", "P131",
    "P136", "P159", "P170", "P175", "P176", "P264", "P276", "P407", "P413", "P495", "P740", "P800",
]  # fmt: skip
POPQA = [
    "author", "capital of", "color", "composer", "country", "director", "father", "genre", "mother",
    "occupation", "place of birth", "producer", "religion", "screenwriter", "sport",
]  # fmt: skip
FACTBOOK = [
    "anthem", "capital", "currency", "government_type", "highest_point", "internet_code",
    "legal_system", "national_symbol",
]  # fmt: skip


@pytest.mark.parametrize("name", list(TEMPLATES.relations))
def test_each_relation_has_enough_wordings(name):
    relation = TEMPLATES.relations[name]
    assert len(relation.statements) >= 4
    assert len(relation.questions) + len(relation.held_out) >= 8
    assert len(relation.held_out) >= 2
    for template in [*relation.questions, *relation.held_out, *relation.asked_as]:
        assert re.findall(r"\{.*?\}", template) == ["{subject}"]
    for template in relation.statements:
        assert re.findall(r"\{.*?\}", template) == ["{subject}", "{answer}"]
    wordings = [*relation.statements, *relation.questions, *relation.held_out]
    assert len({wording.lower() for wording in wordings}) == len(wordings)


EMBEDDED_RELATIONS = [
    "capital", "continent", "currency", "internet_domain", "calling_code", "element_symbol",
    "atomic_number", "state_capital", "state_abbreviation", "statehood_year", "author",
]  # fmt: skip
STUDY_RELATIONS = [
    "country", "deathplace", "occupation", "genre", "headquarters", "language", "position",
    "country_of_origin",
]  # fmt: skip


def test_relations_that_are_taught_by_statements_have_many():
    counts = {name: len(TEMPLATES.relations[name].statements) for name in TEMPLATES.relations}
    assert all(counts[name] >= 8 for name in EMBEDDED_RELATIONS)
    assert all(counts[name] >= 12 for name in STUDY_RELATIONS)


@pytest.mark.parametrize("name", list(TEMPLATES.relations))
def test_no_statement_holds_a_held_out_question(name):
    relation = TEMPLATES.relations[name]
    for statement in relation.statements:
        assert "?" not in statement
        for question in relation.held_out:
            assert question.rstrip("?.").casefold() not in statement.casefold()


def test_relations_of_the_data_sets_are_known():
    for relation in [*ENTITY_QUESTIONS, *POPQA, *FACTBOOK]:
        fact = Fact("1", "?", ("x",), relation=relation)
        assert TEMPLATES.relation_of(fact) is not None, relation


@pytest.mark.parametrize(
    ("relation", "question", "subject"),
    [
        ("P17", "Which country is Izushi District, Hyōgo located in?", "Izushi District, Hyōgo"),
        ("P19", "Where was Claude Thomas Stanfield Moore born?", "Claude Thomas Stanfield Moore"),
        ("P20", "Where did David Blewitt die?", "David Blewitt"),
        ("P26", "Who is Superman married to?", "Superman"),
        ("P36", "What is the capital of Straits Settlements?", "Straits Settlements"),
        ("P40", "Who is Elliott Roosevelt's child?", "Elliott Roosevelt"),
        ("P50", "Who is the author of Letter to M. D'Alembert?", "Letter to M. D'Alembert"),
        ("P69", "Where was Fiona Watt educated?", "Fiona Watt"),
        ("P106", "What kind of work does Barbara Askins do?", "Barbara Askins"),
        ("P112", "Who founded Twin Galaxies?", "Twin Galaxies"),
        ("P127", "Who owns So.cl?", "So.cl"),
        ("P131", "Where is Santa Maria Podone located?", "Santa Maria Podone"),
        ("P136", "What type of music does Red Garland's Piano play?", "Red Garland's Piano"),
        ("P159", "Where is the headquarter of Quick '20?", "Quick '20"),
        ("P170", "Who was Def Comedy Jam created by?", "Def Comedy Jam"),
        ("P175", "Who performed This Is Only a Test?", "This Is Only a Test"),
        ("P176", "Which company is INS Sindhukirti (S61) produced by?", "INS Sindhukirti (S61)"),
        ("P264", "What music label is Workin' Out! represented by?", "Workin' Out!"),
        ("P276", "Where is Vietnam Veterans Memorial located?", "Vietnam Veterans Memorial"),
        ("P407", "Which language was My Name written in?", "My Name"),
        ("P413", "What position does Chaz Schilens play?", "Chaz Schilens"),
        ("P495", "Which country was Minor Threat created in?", "Minor Threat"),
        ("P740", "Where was LUKoil-Avia founded?", "LUKoil-Avia"),
        ("P800", "What is Tex Rickard famous for?", "Tex Rickard"),
        ("P50", "When was Emma written?", None),
        ("P9999", "Where was Fiona Watt educated?", None),
    ],
)
def test_subject_is_read_off_the_question(relation, question, subject):
    fact = Fact("1", question, ("x",), relation=relation)
    assert TEMPLATES.with_subject(fact).subject == subject


def test_subject_is_read_off_every_row_of_the_real_file(real_data):
    path = real_data / "qa" / "facts.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [row for row in map(json.loads, lines) if row.get("relation")]
    assert len(rows) > 10_000
    for row in rows:
        fact = TEMPLATES.with_subject(
            Fact(row["id"], row["question"], tuple(row["answers"]), relation=row["relation"])
        )
        assert fact.subject is not None, row
        if "subject" in row:  # given in PopQA and factbook, so the reading can be checked
            assert fact.subject.split() == row["subject"].split()


@settings(deadline=None, max_examples=60)
@given(
    name=st.sampled_from(sorted(TEMPLATES.relations)),
    subject=st.from_regex(r"[A-Z][\w .'()-]*\w", fullmatch=True),
)
def test_subject_survives_every_question(name, subject):
    fact = Fact("1", "?", ("x",), relation=name, subject=subject)
    relation = TEMPLATES.relations[name]
    for question_set in ("training", "held_out"):
        for question in TEMPLATES.question_texts(fact, question_set):
            assert relation.recover_subject(question) == subject


def test_statements_and_questions_of_a_fact():
    fact = Fact("1", "?", ("Nassau", "Nassau City"), relation="P36", subject="the Bahamas")
    texts = [rendering.text for rendering in TEMPLATES.statements(fact)]
    assert "The capital of the Bahamas is Nassau." in texts
    assert "The Bahamas has as its capital Nassau." in texts
    for rendering in [*TEMPLATES.statements(fact), *TEMPLATES.questions(fact)]:
        assert rendering.answer.strip() == "Nassau"
        assert not rendering.prompt.endswith(" ")
        assert "the Bahamas" in rendering.prompt or rendering.prompt.startswith("The Bahamas")


def test_training_and_held_out_questions_are_apart():
    fact = Fact("1", "Who wrote Emma?", ("Jane Austen",), relation="author", subject="Emma")
    training = set(TEMPLATES.question_texts(fact, "training"))
    held_out = set(TEMPLATES.question_texts(fact, "held_out"))
    assert not training & held_out
    assert "Which writer wrote Emma?" in held_out
    assert TEMPLATES.question_texts(fact, "own_question") == ["Who wrote Emma?"]


def test_a_held_out_wording_of_the_source_is_not_trained_on():
    fact = Fact("1", "Which writer wrote Emma?", ("Jane Austen",), relation="author")
    fact = TEMPLATES.with_subject(fact)
    assert fact.subject == "Emma"
    assert fact.question not in TEMPLATES.question_texts(fact, "training")


def test_unknown_relation_keeps_its_own_wording():
    fact = Fact("1", "who shot the sheriff", ("Bob",), statement="Bob shot him. [[Bob]], I say!")
    assert TEMPLATES.questions(fact) == [question_rendering("who shot the sheriff", "Bob")]
    assert TEMPLATES.questions(fact, "held_out") == []
    assert TEMPLATES.statements(fact) == [Rendering("Bob shot him.", " Bob", ", I say!")]


def test_statement_is_cut_at_whole_words():
    assert statement_rendering("Romeo fled Rome.", ["Rome"]) == Rendering(
        "Romeo fled", " Rome", "."
    )
    assert statement_rendering("Romeo fled.", ["Rome"]) is None
    assert statement_rendering("It cost (about) $5", ["$5"]) == Rendering("It cost (about)", " $5")
    assert statement_rendering("In the EU.", ["European Union", "EU"]).answer == " EU"


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("born: [a]", "relation 'born' must have the lists"),
        ("born: {statements: [], questions: [], held_out: [], asked: []}", "'asked'"),
        ("born: {statements: ['{subject} {answer}'], questions: [1], held_out: []}", "strings"),
        (
            "born: {statements: ['{answer}: {subject}'], questions: [], held_out: []}",
            "must contain {subject} and then {answer}",
        ),
        (
            "born: {statements: [], questions: ['When? {name}'], held_out: []}",
            "'When? {name}' must contain {subject}",
        ),
        (
            "born: {statements: [], questions: ['Who {subject}?'], held_out: ['Who {subject}?']}",
            "both trains on and holds out",
        ),
        (
            "a: {also: [P1], statements: [], questions: [], held_out: []}\n"
            "b: {also: [P1], statements: [], questions: [], held_out: []}",
            "'P1' is claimed by both 'a' and 'b'",
        ),
        ("- a\n- b", "expected a mapping"),
    ],
)
def test_bad_templates_are_refused(tmp_path, yaml, complaint):
    path = tmp_path / "relations.yaml"
    path.write_text(yaml)
    with pytest.raises(ValueError, match=re.escape(complaint)):
        FactTemplates.from_file(path)


def test_missing_templates_are_refused():
    with pytest.raises(FileNotFoundError, match=r"no templates at 'nowhere\.yaml'"):
        FactTemplates.from_file("nowhere.yaml")
