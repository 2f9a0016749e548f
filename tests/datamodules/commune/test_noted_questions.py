"""A task from a file: notes for each agent, questions, answers."""

import json

import pytest

from tests.models.tiny_chat_model import chat_tokenizer
from triptych.datamodules.commune.noted_questions import NotedQuestions
from triptych.datamodules.sources.records import RecordSource

ROWS = [
    {
        "notes": ["Anna is in the hall.", "Ben is in the garden."],
        "question": "Where is Ben?",
        "answers": ["the garden"],
    },
    {
        "notes": ["Box 3 is red.", "Box 4 is blue."],
        "questions": ["What is box 4?", "What is box 3?"],
        "answers": ["Blue.", "red"],
        "reply_starts": ["Box 4 is", "Box 3 is"],
    },
]


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordSource(str(path))


def task(path, rows=ROWS, **settings):
    source = written(path, rows)
    return NotedQuestions(**({"source": source, "num_train": 1, "num_val": 1} | settings))


def test_every_agent_reads_its_own_note_and_question(tmp_path, smollm2):
    made, tokenizer = task(tmp_path / "notes.jsonl"), chat_tokenizer(smollm2)
    questions = made.read_questions(made.source)
    texts = [
        [tokenizer.decode(ids) for ids in made.encode(tokenizer, questions, agent)]
        for agent in range(2)
    ]
    assert "user\nAnna is in the hall.\nWhere is Ben?<|im_end|>" in texts[0][0]
    assert "user\nBen is in the garden.\nWhere is Ben?<|im_end|>" in texts[1][0]
    assert texts[0][1].endswith("What is box 4?<|im_end|>\n<|im_start|>assistant\nBox 4 is")
    assert questions[0].answer_of(1) == "garden"
    assert [questions[1].answer_of(k) for k in range(2)] == ["blue", "red"]
    assert made.reference_replies(questions, 0) == ["garden", " blue"]
    heard = made.messages(questions, [["", ""], ["", ""]], 0, 3)
    assert heard == [["Ben is in"], ["Box 4 is"]]
    told = tokenizer.decode(made.encode(tokenizer, questions, 0, heard)[0])
    assert "Anna is in the hall.\nBen is in\nWhere is Ben?" in told
    by_reply = task(tmp_path / "notes.jsonl", message="reply")
    assert by_reply.messages(questions, [["", " red"], ["", " blue"]], 0)[1] == ["Box 3 is blue"]


def test_replies_are_read_as_what_they_name_or_say(tmp_path):
    named = task(tmp_path / "notes.jsonl")
    assert named.read_answer("He is in the Garden, not the redder one.") == "garden"
    assert named.read_answer("In the hall.") is None
    assert named.read_answer("<think>red</think> BLUE, or red") == "blue"
    text = task(tmp_path / "notes.jsonl", answer_kind="text")
    assert text.read_answer("The garden.\nBen likes it.") == "garden"
    number = task(
        tmp_path / "ages.jsonl",
        [{"notes": ["A is 7", "B is 8"], "question": "How old is B?", "answers": ["8"]}] * 2,
        answer_kind="number",
    )
    assert number.questions("train")[0].answers == ["8"]
    assert number.read_answer("B is 8 years old.") == "8"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"notes": ["one"]}, r"notes.jsonl.*2.*'notes' has 1 notes for 2 agents"),
        ({"question": None}, r"notes.jsonl.*2.*'question' \(for all agents\)"),
        ({"question": " "}, r"notes.jsonl.*2.*'question' is empty"),
        ({"answers": []}, r"notes.jsonl.*2.*'answers' is missing"),
        ({"answers": ["a", "b", "c"]}, r"notes.jsonl.*2.*'answers' has 3 entries"),
        ({"answers": ["?"]}, r"notes.jsonl.*2.*no named is found in answer '\?'"),
        ({"reply_starts": ["a"]}, r"notes.jsonl.*2.*'reply_starts' has 1 entries"),
    ],
)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path, change, message):
    made = task(tmp_path / "notes.jsonl", [ROWS[0], ROWS[0] | change])
    with pytest.raises(ValueError, match=message):
        made.questions("train")


def test_a_question_may_be_asked_by_hand_or_without_an_answer(tmp_path):
    made = task(tmp_path / "notes.jsonl")
    question = made.ask("Where?", ["a", "b"], "In the")
    assert question.answers == []
    assert question.evidence_of(1) == {"note": "b", "question": "Where?", "start": "In the"}
    with pytest.raises(ValueError, match="3 notes for 2 agents"):
        made.ask("Where?", ["a", "b", "c"])
    open_rows = written(tmp_path / "open.jsonl", [{"notes": ["a", "b"], "question": "Where?"}])
    assert made.read_questions(open_rows)[0].answers == []


def test_splits_do_not_overlap_and_the_default_is_embedded(tmp_path):
    made = NotedQuestions(num_train=20, num_val=10)
    train, val = made.questions("train"), made.questions("val")
    assert not {str(q.evidence) for q in train} & {str(q.evidence) for q in val}
    assert made.fingerprint("train") != made.fingerprint("val")
    with pytest.raises(ValueError, match="2 questions and 3 are asked"):
        task(tmp_path / "notes.jsonl", num_val=2).questions("val")
