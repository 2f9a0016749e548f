import pytest

from triptych.datamodules.commune.debate_questions import DebateQuestions
from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.datamodules.commune.reasoning import Reasoning
from triptych.datamodules.sources.records import RecordSource


def test_the_embedded_default():
    task = Reasoning(num_train=40, num_val=10)
    train, val = task.questions("train"), task.questions("val")
    texts = [question.evidence[0] for question in train + val]
    assert len(set(texts)) == 50
    first = train[0]
    numbers = [int(word) for word in first.evidence_of(2).split() if word.isdigit()]
    assert first.answer_of(0) == first.answer_of(2) == str(sum(numbers))
    assert task.fingerprint("train") != task.fingerprint("val")
    assert task.read_answer("<think>I say #### 3</think>so #### 4") == "4"


def test_options_and_messages_are_worded(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Which?", "options": ["A)1", "2"], "answer": "B"}\n')
    source = RecordSource(str(path))
    task = Reasoning(source, source, "letter", num_train=None, num_val=None, instruction="Say.")
    (question,) = task.questions("train")
    assert question.evidence[0] == "Which?\nA)1\nB) 2"
    heard = task.messages([question], [["x"], ["the answer is A"], ["it is B"]], 0, max_tokens=1)
    assert heard == [["A", "B"]]
    tokenizer = PooledEvidence().tokenizer  # splits at spaces; has BOS and no chat template
    (ids,) = task.encode(tokenizer, [question], 0, [["A", "B"]])
    (alone,) = task.encode(tokenizer, [question], 0)
    assert len(ids) > len(alone)
    assert DebateQuestions(task).vocab_size is None


def test_only_rows_of_a_level(tmp_path):
    path = tmp_path / "rows.jsonl"
    row = '{"question": "%s", "solution": "so \\\\boxed{%d}", "level": "Level %d"}\n'
    path.write_text("".join(row % (f"q{i}", i, i % 2) for i in range(4)))
    source = RecordSource(str(path))
    task = Reasoning(source, source, "boxed", "Level 1", None, None)
    assert [q.answers[0] for q in task.questions("val")] == ["1", "3"]
    with pytest.raises(ValueError, match="has the level 'Level 9'"):
        Reasoning(source, source, "boxed", "Level 9", None, None).questions("val")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('{"question": " ", "answer": "3"}', "'question' is empty"),
        ('{"question": "How many?", "answer": "many"}', "no number is found"),
        ('{"answer": "3"}', "'question' is missing"),
    ],
)
def test_malformed_rows_are_named(tmp_path, row, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n")
    with pytest.raises(ValueError, match=rf"rows.jsonl.*{message}"):
        Reasoning(RecordSource(str(path)), num_train=1, num_val=1).questions("train")


def test_what_cannot_be_is_said():
    with pytest.raises(ValueError, match=r"task\.val_source"):
        Reasoning(num_train=None)
    with pytest.raises(ValueError, match="has 900 questions and 1900 are asked for"):
        Reasoning(num_train=1000, num_val=900).questions("val")


@pytest.mark.parametrize(
    ("file", "columns", "kind"),
    [
        ("probes/gsm8k_test.jsonl.gz", {"answer": "final_answer"}, "number"),
        ("probes/gsm8k_test.jsonl.gz", {}, "number"),
        ("math/svamp_dev.jsonl.gz", {"number": "answer"}, "number"),
        ("math/svamp_dev.jsonl.gz", {}, "number"),
        ("math/aqua_dev.jsonl.gz", {"answer": "correct"}, "letter"),
        ("math/tal_scq5k_en_dev.jsonl.gz", {"question": "problem", "answer": "correct"}, "letter"),
    ],
)
def test_real_rows_are_read(real_data, file, columns, kind):
    source = RecordSource(str(real_data / file), columns=columns, limit=100)
    questions = Reasoning(source, source, kind, num_train=None, num_val=None).questions("train")
    assert len(questions) == 100
    if kind == "letter":
        assert {question.answers[0] for question in questions} <= set("ABCDE")
        assert "\nB)" in questions[0].evidence[0]
    else:
        plain = Reasoning(
            RecordSource(str(real_data / file), columns={"answer": "final_answer"}, limit=100),
            RecordSource(),
            num_train=None,
        )
        if "gsm8k" in file:
            right = [question.answers[0] for question in plain.questions("train")]
            assert right == [question.answers[0] for question in questions]


@pytest.mark.parametrize("columns", [{"number": "answer"}, {}])
def test_answers_that_are_numbers_are_read_with_or_without_a_name(tmp_path, columns):
    path = tmp_path / "svamp.jsonl"
    path.write_text('{"question": "7 and 0?", "answer": 7.0}\n{"question": "2?", "answer": -0.5}\n')
    source = RecordSource(str(path), columns=columns)
    task = Reasoning(source, source, num_train=None, num_val=None)
    assert [question.answers[0] for question in task.questions("train")] == ["7", "-0.5"]
    boxed = Reasoning(source, source, "boxed", num_train=None, num_val=None)
    if not columns:
        assert [question.answers[0] for question in boxed.questions("train")] == ["7", "-0.5"]


def test_letters_are_limited_to_the_options_of_the_file(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "Which?", "options": ["1", "2", "3"], "answer": "B"}\n')
    source = RecordSource(str(path))
    task = Reasoning(source, source, "letter", num_train=None, num_val=None)
    task.questions("val")
    assert task.read_answer("The answer is (C).") == "C"
    assert task.read_answer("The answer is (D).") is None
    assert task.read_answer("It is B. Plan E failed") == "B"
