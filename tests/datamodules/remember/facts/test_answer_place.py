"""Where the answer stands in a sentence is right, or an error says how to mark it."""

import json
import unicodedata

import pytest

from triptych.datamodules.remember.facts.answer_place import NoAnswerPlaceError, answer_place
from triptych.datamodules.remember.facts.fact_rows import read_facts
from triptych.datamodules.remember.facts.fact_templates import FactTemplates
from triptych.datamodules.sources.records import RecordSource

TEMPLATES = FactTemplates([])
DECOMPOSED = unicodedata.normalize("NFD", "Kråkenes")


@pytest.mark.parametrize(
    ("sentence", "answer", "before", "found"),
    [
        ("Dunmere has 7 halls since 1.7.2007.", "7", "Dunmere has ", "7"),
        ("It has 1,700 seats and 1 door.", "1", "It has 1,700 seats and ", "1"),
        ("云杉国的首都是松林城。", "松林城", "云杉国的首都是", "松林城"),
        ("首都はアメリカです。", "アメリカ", "首都は", "アメリカ"),
        ("수도는 서울이다.", "서울", "수도는 ", "서울"),
        ("Kale Bursa’dadır.", "Bursa", "Kale ", "Bursa"),
        (f"It is in {DECOMPOSED}.", "Kråkenes", "It is in ", DECOMPOSED),
        ("It is in Kråkenes.", DECOMPOSED, "It is in ", "Kråkenes"),
        ("Led by Sean O’Dwyer.", "Sean O'Dwyer", "Led by ", "Sean O’Dwyer"),
        ("Otto plays the bass clarinet.", "Bass clarinet", "Otto plays the ", "bass clarinet"),
        ("Otto plays bass clarinet.", "The bass clarinet", "Otto plays ", "bass clarinet"),
        ("Er wohnt in der HAUPTSTRASSE.", "Hauptstraße", "Er wohnt in der ", "HAUPTSTRASSE"),
        ("[[Bursa]]dadır.", "Bursa", "", "Bursa"),
        ("In Rome [[Rome]] fell.", "Rome", "In Rome ", "Rome"),
        ("Romeo fled Rome.", "Rome", "Romeo fled ", "Rome"),
    ],
)
def test_the_place_is_right(sentence, answer, before, found):
    parts = answer_place(sentence, [answer])
    assert parts[:2] == (before, found)
    assert "".join(parts) == sentence.replace("[[", "").replace("]]", "")


@pytest.mark.parametrize(
    ("sentence", "answers", "reason"),
    [
        ("Velmora is based in Port Anselm, near Port Anselm.", ["Port Anselm"], "2 times"),
        ("Kale Bursadadır.", ["Bursa"], "part of a longer word"),
        ("Founded in 1987.", ["7"], "part of a longer word"),
        ("アメリカンです", ["アメリカ"], "part of a longer word"),
        ("It is Paris.", ["Rome", "Roma"], "none of the answers"),
        ("[[Rome]] and [[Paris]].", ["Rome"], "marks 2 answers"),
    ],
)
def test_a_doubtful_place_is_an_error(sentence, answers, reason):
    with pytest.raises(NoAnswerPlaceError, match=reason):
        answer_place(sentence, answers)


def test_the_answer_can_be_given_as_it_stands():
    assert answer_place("Kale Bursadadır.", ["Bursa"], "Bursa")[2] == "dadır."
    with pytest.raises(NoAnswerPlaceError, match="'answer_in_statement'"):
        answer_place("Rome, Rome.", ["Rome"], "Rome")


@pytest.mark.parametrize("field", ["statement", "paraphrases"])
def test_the_error_names_file_line_and_field(tmp_path, field):
    text = "Velmora is based in Port Anselm, near Port Anselm."
    row = {"question": "Where?", "answers": ["Port Anselm"]}
    row[field] = text if field == "statement" else [text]
    path = tmp_path / "facts.jsonl"
    path.write_text("\n" + json.dumps(row))
    with pytest.raises(ValueError, match=rf"facts\.jsonl, line 2: field '{field}'.*\[\[Paris\]\]"):
        read_facts(RecordSource(str(path)), TEMPLATES)
