"""Facts in the formats of the field, their ids, and what contradicts itself."""

import json
import re

import pytest

from triptych.datamodules.remember.facts.fact_rows import content_id, read_facts, with_rephrasings
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates, FollowUp
from triptych.datamodules.sources.records import RecordSource

TEMPLATES = FactTemplates([])
CHAT = TEMPLATES.in_form(chat=True)
KNOWEDIT = {
    "subject": "Grey Harbour Monday",
    "prompt": "Which label issued the record Grey Harbour Monday?",
    "target_new": "Blue Anchor",
    "ground_truth": ["Tin Roof Records"],
    "rephrase_prompt": "Grey Harbour Monday came out on which label?",
    "locality": {
        "Relation_Specificity": [
            {"prompt": "The singer on Grey Harbour Monday is", "ground_truth": ["Lena Okoro"]}
        ]
    },
    "portability": {"Reasoning": [{"prompt": "Where does it sit?", "ground_truth": [["Hollin"]]}]},
}
COUNTERFACT = {
    "case_id": 1,
    "requested_rewrite": {
        "prompt": "The first language of {} is",
        "relation_id": "P103",
        "target_new": {"str": "Welsh"},
        "target_true": {"str": "Breton"},
        "subject": "Maelle Kerdoncuff",
    },
    "paraphrase_prompts": ["Maelle Kerdoncuff grew up speaking"],
    "neighborhood_prompts": ["The first language of Yann Tudal is"],
}
ZSRE = {
    "subject": "Alder Hall",
    "src": "Who designed Alder Hall?",
    "alt": "Ana Quill",
    "answers": ["Bo Rusk"],
    "rephrase": "Alder Hall was designed by whom?",
    "loc": "nq question: who sang it",
    "loc_ans": "Cher",
}
POPQA = {
    "id": 4222362,
    "subj": "Otto",
    "prop": "occupation",
    "question": "What is Otto's occupation?",
    "possible_answers": '["politician", "pol"]',
}
TRIVIAQA = {
    "question": "Which actor wrote Empty Saddles?",
    "question_id": "tc_1",
    "answer": {"value": "Reg Hollis", "aliases": ["Empty Saddles", "Reg Hollis"]},
}


@pytest.fixture
def read(tmp_path):
    def read_text(name, text, **settings):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return read_facts(RecordSource(str(path)), TEMPLATES, **settings)

    return read_text


def lines(*rows):
    return "\n".join(map(json.dumps, rows))


@pytest.mark.parametrize(
    ("name", "text"),
    [("a.jsonl", lines(KNOWEDIT)), ("a.json", json.dumps([KNOWEDIT], indent=1))],
)
def test_knowedit(read, name, text):
    (fact,) = read(name, text)
    assert (fact.question, fact.answers) == (KNOWEDIT["prompt"], ("Blue Anchor",))
    assert fact.held_out == (KNOWEDIT["rephrase_prompt"],)
    assert fact.locality == (FollowUp("The singer on Grey Harbour Monday is", ("Lena Okoro",)),)
    assert fact.portability == (FollowUp("Where does it sit?", ("Hollin",)),)
    assert KNOWEDIT["rephrase_prompt"] not in CHAT.question_texts(fact)
    assert CHAT.question_texts(fact, "held_out") == [KNOWEDIT["rephrase_prompt"]]


def test_counterfact(read):
    (fact,) = read("a.jsonl", lines(COUNTERFACT))
    assert (fact.id, fact.subject, fact.relation) == ("1", "Maelle Kerdoncuff", "P103")
    assert fact.question == "What is the first language of Maelle Kerdoncuff?"
    (statement,) = TEMPLATES.statements(fact)
    assert statement.text == "The first language of Maelle Kerdoncuff is Welsh."
    assert statement.answer == " Welsh"
    assert fact.held_out == ("Complete this sentence: Maelle Kerdoncuff grew up speaking",)
    assert fact.locality == (FollowUp("The first language of Yann Tudal is", ("Breton",)),)


def test_zsre_teaches_the_new_answer(read):
    (fact,) = read("a.jsonl", lines(ZSRE))
    assert (fact.question, fact.answers) == (ZSRE["src"], ("Ana Quill",))
    assert fact.held_out == (ZSRE["rephrase"],)
    assert fact.locality == (FollowUp("who sang it", ("Cher",)),)


def test_popqa_and_triviaqa(read):
    popqa, trivia = read("a.jsonl", lines(POPQA, TRIVIAQA))
    assert (popqa.id, popqa.answers) == ("4222362", ("politician", "pol"))
    assert (popqa.subject, popqa.relation) == ("Otto", "occupation")
    assert (trivia.id, trivia.answers) == ("tc_1", ("Reg Hollis", "Empty Saddles"))


def test_a_spreadsheet_with_semicolons_and_a_mark_of_its_encoding(read):
    (fact,) = read("a.csv", "\ufeffid;question;answers\r\n1;Who runs Alder, Ltd?;Ana Quill\r\n")
    assert (fact.id, fact.question) == ("1", "Who runs Alder, Ltd?")


def test_plain_text_says_what_is_asked(read):
    text = (
        "Brightwell is led by Ingrid Solvang.\n\nDunmere has [[7]] halls since 1.7.2007.\n"
        "Who runs Alder? Ana Quill\nWho runs Birch?\tBo Rusk\n"
    )
    with pytest.warns(UserWarning, match=r"1 lines .*line 1: 'Ingrid Solvang', asked 'Who is Bri"):
        guessed, marked, asked, tabbed = read("a.txt", text)
    assert TEMPLATES.statements(guessed)[0].prompt == "Brightwell is led by"
    assert TEMPLATES.statements(marked)[0].remainder == " halls since 1.7.2007."
    assert (asked.question, asked.answers) == ("Who runs Alder?", ("Ana Quill",))
    assert (tabbed.question, tabbed.answers) == ("Who runs Birch?", ("Bo Rusk",))
    with pytest.raises(ValueError, match=r"a\.txt, line 1: field 'statement' does not say what"):
        read("a.txt", "云杉国的首都是松林城。")


def test_ids_come_from_the_content(read):
    first = {"question": "Who runs Alder?", "answers": ["Ana Quill"]}
    second = {"question": "Who runs Birch?", "answers": ["Bo Rusk"]}
    one, two = read("a.jsonl", lines(first, second)), read("b.jsonl", lines(second, first))
    assert [fact.id for fact in one] == [fact.id for fact in reversed(two)]
    assert one[0].id == content_id("Who runs Alder?", "Ana Quill") != one[1].id


def test_two_facts_with_one_id_are_refused(read):
    rows = [{"id": "x", "question": f"Who runs {name}?", "answers": ["Ana"]} for name in ("A", "B")]
    with pytest.raises(ValueError, match=r"line 2: field 'id': 'x' .*line 1: give each"):
        read("a.jsonl", lines(*rows))
    with pytest.warns(UserWarning, match=r"come twice .*line 2 repeats .*line 1"):
        assert len(read("a.jsonl", lines(rows[0], rows[0]))) == 1


def test_contradictions_are_named(read):
    rows = [
        {"question": "Who runs Alder?", "answers": ["Ana"]},
        {"question": "who runs  Alder", "answers": ["Bo"]},
    ]
    named = r"line 2 answers 'who runs  Alder' by 'Bo', .*line 1 by 'Ana'"
    with pytest.warns(UserWarning, match=named):
        assert len(read("a.jsonl", lines(*rows))) == 2
    with pytest.warns(UserWarning, match=named):
        (later,) = read("a.jsonl", lines(*rows), on_contradiction="replace")
    assert later.answers == ("Bo",)
    with pytest.raises(ValueError, match=named):
        read("a.jsonl", lines(*rows), on_contradiction="error")


@pytest.mark.parametrize("chat", [False, True])
def test_some_rephrasings_are_held_out(chat):
    fact = Fact("1", "Who?", ("Ann",), rephrasings=("a?", "b?", "c?", "d?", "e?", "f?"))
    templates = TEMPLATES.in_form(chat)
    assert templates.question_texts(fact)[:5] == ["Who?", "a?", "b?", "c?", "d?"]
    assert templates.question_texts(fact, "held_out") == ["e?", "f?"]


def test_in_chat_form_every_fact_has_held_out_questions():
    for question in ("Who runs Alder?", "云杉国的首都是哪里？", "Complete this sentence: It is"):
        fact = Fact("1", question, ("Ann",))
        taught, held_out = CHAT.question_texts(fact), CHAT.question_texts(fact, "held_out")
        assert taught[0] == question
        assert held_out
        assert not {*taught} & {*held_out}
        assert TEMPLATES.question_texts(fact, "held_out") == []


def test_rephrasings_from_a_file(tmp_path):
    facts = [Fact("1", "Who?", ("Ann",)), Fact("2", "Where?", ("Rome",))]
    row = {"id": 2, "rephrase": ["In which town?"], "held_out": ["At what place?"]}
    row["paraphrases"] = ["It is in Rome.", "Which town is it?"]
    path = tmp_path / "rephrasings.jsonl"
    path.write_text(lines(row, {"id": "other", "paraphrases": ["Nothing of these."]}))
    first, second = with_rephrasings(facts, RecordSource(str(path)))
    assert first == facts[0]
    assert second.held_out == ("At what place?",)
    assert second.sentences == ("It is in Rome.",)
    path.write_text(lines(row | {"paraphrases": ["It is in Paris."]}))
    with pytest.raises(ValueError, match=re.escape("line 1: field 'paraphrases': 'It is in Par")):
        with_rephrasings(facts, RecordSource(str(path)))
