"""Rows of probes: fields, malformed rows, embedded and real ones."""

import pytest

from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.probe_rows import (
    Answered,
    Choice,
    draw_rows,
    embedded_answers,
    embedded_choices,
    read_answered,
    read_choices,
    read_texts,
)
from triptych.datamodules.sources.records import RecordSource

GOOD = {"ctx": "A man sits. ", "endings": ["He stands.", "Soup."], "label": 0}


def test_choices_are_read(write_jsonl):
    path = write_jsonl("h.jsonl.gz", [GOOD | {"id": "x"}, GOOD | {"label": "1"}])
    choices = read_choices(RecordSource(path))
    assert choices == [
        Choice("A man sits.", ("He stands.", "Soup."), 0),
        Choice("A man sits.", ("He stands.", "Soup."), 1),
    ]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"ctx": "A", "endings": ["b", "c"]}, "field 'label' is missing"),
        (GOOD | {"label": ""}, "field 'label' must be int, got str ''"),
        (GOOD | {"label": 2}, "field 'label' is 2, but there are 2 endings"),
        (GOOD | {"label": -1}, "field 'label' is -1"),
        (GOOD | {"endings": ["b"]}, "field 'endings' has 1 endings"),
        (GOOD | {"endings": ["b", " "]}, "field 'endings' has an empty ending"),
        (GOOD | {"endings": [1, 2]}, r"field 'endings' must be list\[str\]"),
        ({"endings": ["b", "c"], "label": 0}, "field 'ctx' is missing"),
    ],
)
def test_malformed_choices_name_file_line_and_field(write_jsonl, row, message):
    path = write_jsonl("h.jsonl", [GOOD, row])
    with pytest.raises(ValueError, match=rf"h\.jsonl, line 2: {message}"):
        read_choices(RecordSource(path))
    with pytest.warns(UserWarning, match="skipped 1 malformed of 2 rows"):
        assert len(read_choices(RecordSource(path, on_bad_row="skip"))) == 1


def test_answered_questions(write_jsonl):
    path = write_jsonl("g.jsonl", [{"question": "2 + 2? ", "answer": "It is 4\n#### 4"}])
    assert read_answered(RecordSource(path)) == [Answered("2 + 2?", "It is 4\n#### 4")]
    path = write_jsonl("bad.jsonl", [{"question": "2?", "answer": " "}])
    with pytest.raises(ValueError, match=r"bad\.jsonl, line 1: field 'answer' is empty"):
        read_answered(RecordSource(path))
    path = write_jsonl("none.jsonl", [{"question": "2?"}])
    with pytest.raises(ValueError, match=r"none\.jsonl, line 1: field 'answer' is missing"):
        read_answered(RecordSource(path))


def test_texts(write_jsonl):
    path = write_jsonl("t.jsonl", [{"text": "one "}, {"text": " \n"}, {"text": "two"}])
    assert read_texts(RecordSource(path)) == ["one ", "two"]
    with pytest.raises(ValueError, match="only white space"):
        read_texts(RecordSource(write_jsonl("blank.jsonl", [{"text": " "}])))


@pytest.mark.parametrize("read", [read_choices, read_answered, read_texts])
def test_empty_and_missing_sources(write_jsonl, read):
    with pytest.raises(ValueError, match=r"no rows in .*nothing\.jsonl"):
        read(RecordSource(write_jsonl("nothing.jsonl", [])))
    with pytest.raises(FileNotFoundError, match="no file at"):
        read(RecordSource("absent/rows.jsonl"))


def test_draws_are_fixed_by_the_seed():
    rows = list(range(100))
    drawn = draw_rows(rows, 10, seed=1)
    assert drawn == sorted(drawn) == draw_rows(rows, 10, seed=1)
    assert len(set(drawn)) == 10
    assert drawn != draw_rows(rows, 10, seed=2)
    assert drawn != rows[:10]
    assert draw_rows(rows, None, seed=1) == draw_rows(rows, 100, seed=1) == rows


def test_embedded_choices_have_one_true_ending():
    answers = {(row["relation"], row["subject"]): row["answers"] for row in embedded_facts()}
    rows = embedded_choices()
    assert len(rows) > 1000
    assert rows == embedded_choices()
    labels = [row["label"] for row in rows]
    assert min(labels.count(place) for place in range(4)) > len(rows) / 5  # no place is favoured
    italy = next(row for row in rows if row["ctx"] == "The capital of Italy is")
    assert italy["endings"][italy["label"]] == "Rome."
    capitals = {
        a for (relation, _), listed in answers.items() for a in listed if "capital" in relation
    }
    assert {ending.removesuffix(".") for ending in italy["endings"]} <= capitals
    for row in rows:
        assert len(set(row["endings"])) == 4
    # Of several right answers, none is among the wrong endings.
    bolivia = next(row for row in rows if row["ctx"] == "The capital of Bolivia is")
    assert "La Paz." not in bolivia["endings"]


def test_embedded_answers_are_sentences():
    rows = embedded_answers()
    assert {
        "question": "What is the capital of Italy?",
        "answer": "The capital of Italy is Rome.",
    } in rows
    assert len(read_answered(RecordSource())) == len(rows)
    assert len(read_choices(RecordSource())) == len(embedded_choices())
    assert read_texts(RecordSource())


def test_real_rows(real_data):
    choices = read_choices(RecordSource(str(real_data / "probes/hellaswag_val_2k.jsonl.gz")))
    assert len(choices) == 2000
    assert all(len(choice.endings) == 4 for choice in choices)
    answered = read_answered(RecordSource(str(real_data / "probes/gsm8k_test.jsonl.gz")))
    assert len(answered) == 1319
    assert answered[0].answer.endswith("#### 18")
