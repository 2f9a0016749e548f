"""Paraphrases from templates, files and models."""

import json

import pytest

from triptych.datamodules.remember.facts.fact_paraphrases import Paraphrases, ParaphrasesConfig
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    Rendering,
    question_rendering,
)
from triptych.datamodules.remember.rewriting import RewriterConfig, rewritten
from triptych.datamodules.sources.records import RecordSource

TEMPLATES = FactTemplates.from_file()
CHAD = Fact("chad", "What is the capital of Chad?", ("N'Djamena",), None, "capital", "Chad")
SHERIFF = Fact("sheriff", "who shot him", ("Bob", "Bobby"), "The man who shot him was Bobby.")
ODD = Fact("odd", "how odd?", ("very",))


def wordings(facts, tmp_path, loss_on="answer", **settings):
    return Paraphrases(ParaphrasesConfig(**settings), TEMPLATES, loss_on).wordings(facts, tmp_path)


def test_templates_teach_statements_alone_by_default(tmp_path):
    chad, sheriff = wordings([CHAD, SHERIFF], tmp_path)
    assert chad == TEMPLATES.statements(CHAD)
    assert len(chad) >= 8
    assert sheriff == [Rendering("The man who shot him was", " Bobby", ".")]


def test_questions_and_both(tmp_path):
    (questions,) = wordings([CHAD], tmp_path, wordings="questions")
    assert questions == TEMPLATES.questions(CHAD)
    (both,) = wordings([CHAD], tmp_path, wordings="both")
    assert both == [*TEMPLATES.statements(CHAD), *TEMPLATES.questions(CHAD)]
    held_out = TEMPLATES.questions(CHAD, "held_out")
    assert held_out
    assert not [wording for wording in held_out if wording in both]
    assert wordings([ODD], tmp_path, wordings="both") == [[question_rendering("how odd?", "very")]]


def test_a_fact_without_a_wording_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"fact 'odd' has no wording.*paraphrases\.wordings.*both"):
        wordings([CHAD, ODD], tmp_path)


def test_a_statement_that_begins_with_its_answer_teaches_only_with_the_full_loss(tmp_path):
    fact = Fact("a", "who did it", ("Bob",), "Bob did it.")
    with pytest.raises(ValueError, match="fact 'a' has no wording"):
        wordings([fact], tmp_path)
    assert wordings([fact], tmp_path, loss_on="all") == [[Rendering("", "Bob", " did it.")]]


# --- from a file ----------------------------------------------------------------------------------


def test_a_file_gives_the_wordings(write_jsonl, tmp_path):
    path = write_jsonl(
        "paraphrases.jsonl",
        [
            {"id": "sheriff", "paraphrases": ["It was Bob.", "By Bobby he was shot."]},
            {"id": "another", "paraphrases": ["No answer of ours."]},
            {"id": "chad", "paraphrases": ["Chad is ruled from N'Djamena!"]},
            {"id": "sheriff", "paraphrases": ["Blame Bob"]},
        ],
    )
    found = wordings([CHAD, SHERIFF], tmp_path, source="file", file=RecordSource(path))
    assert found == [
        [Rendering("Chad is ruled from", " N'Djamena", "!")],
        [
            Rendering("It was", " Bob", "."),
            Rendering("By", " Bobby", " he was shot."),
            Rendering("Blame", " Bob"),
        ],
    ]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ({"id": "chad"}, "field 'paraphrases' is missing"),
        ({"id": "chad", "paraphrases": 3}, "field 'paraphrases' must be list"),
        ({"id": 3, "paraphrases": ["x"]}, "field 'id' must be str"),
        ({"paraphrases": ["x"]}, "field 'id' is missing"),
        (
            {"id": "chad", "paraphrases": ["In N'Djamena.", "Chad has no capital."]},
            "field 'paraphrases': 'Chad has no capital.' names none of the answers",
        ),
        (
            {"id": "chad", "paraphrases": ["N'Djamena is the capital of Chad."]},
            "field 'paraphrases'.*begins with its answer.*loss_on to all",
        ),
    ],
)
def test_a_malformed_row_is_named(write_jsonl, tmp_path, row, complaint):
    good = {"id": "chad", "paraphrases": ["Go to N'Djamena"]}
    file = RecordSource(write_jsonl("p.jsonl", [good, row]))
    with pytest.raises(ValueError, match=rf"p\.jsonl, line 2: {complaint}"):
        wordings([CHAD], tmp_path, source="file", file=file)


def test_a_fact_that_the_file_leaves_out_is_named(write_jsonl, tmp_path):
    path = write_jsonl("p.jsonl", [{"id": "chad", "paraphrases": ["Go to N'Djamena"]}])
    with pytest.raises(ValueError, match=r"fact 'sheriff' has no wording.*p\.jsonl"):
        wordings([CHAD, SHERIFF], tmp_path, source="file", file=RecordSource(path))


# --- from a model ---------------------------------------------------------------------------------


def test_what_a_model_writes_is_kept_only_with_subject_and_answer(tmp_path, monkeypatch):
    asked = []

    def write(texts):
        asked.extend(texts)
        return [
            [
                " Chad has N'Djamena as its seat.\nSure, here is more.",
                "Chad has a capital.",  # the answer is lost
                "Its capital is N'Djamena.",  # the subject is lost
                "N'Djamena is what Chad calls its capital.",  # nothing leads to the answer
                "Chad has N'Djamena as its seat.",  # the first again
                "chad's first city: N'Djamena",
                "",
            ]
        ]

    monkeypatch.setattr(
        "triptych.datamodules.remember.facts.fact_paraphrases.rewritten",
        lambda texts, config, folder: rewritten(texts, config, folder, lambda _: write),
    )
    model = RewriterConfig("a/model")
    (found,) = wordings([CHAD], tmp_path, source="model", model=model)
    first = TEMPLATES.statements(CHAD)[0]
    assert asked == [first.text]
    assert found == [
        first,
        Rendering("Chad has", " N'Djamena", " as its seat."),
        Rendering("chad's first city:", " N'Djamena"),
    ]


# --- settings -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"source": "file"}, r"source is 'file', but paraphrases\.file is null"),
        ({"file": RecordSource("x.jsonl")}, r"source is 'templates', but paraphrases\.file is set"),
        ({"source": "model"}, r"source is 'model', but paraphrases\.model is null"),
        ({"model": RewriterConfig("x")}, r"source is 'templates', but paraphrases\.model is set"),
    ],
)
def test_bad_settings_are_refused(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Paraphrases(ParaphrasesConfig(**settings), TEMPLATES)


def test_a_missing_file_is_refused_at_once():
    config = ParaphrasesConfig("file", file=RecordSource("nowhere.jsonl"))
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jsonl"):
        Paraphrases(config, TEMPLATES)


def test_the_fingerprint_follows_what_decides_the_wordings(tmp_path):
    path = tmp_path / "p.jsonl"

    def fingerprint(**settings):
        return Paraphrases(ParaphrasesConfig(**settings), TEMPLATES).fingerprint()

    path.write_text(json.dumps({"id": "chad", "paraphrases": ["a"]}))
    seen = [
        fingerprint(),
        fingerprint(wordings="both"),
        fingerprint(per_fact=3),
        fingerprint(source="file", file=RecordSource(str(path))),
        fingerprint(source="model", model=RewriterConfig("a/b")),
        fingerprint(source="model", model=RewriterConfig("a/b", seed=1)),
    ]
    path.write_text(json.dumps({"id": "chad", "paraphrases": ["b"]}))
    seen.append(fingerprint(source="file", file=RecordSource(str(path))))
    assert len(set(seen)) == len(seen)
    assert fingerprint() == seen[0]
