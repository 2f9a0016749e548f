r"""Rows of GSM8K, SVAMP, AQuA and MATH as their files have them."""

import json

import pytest

from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.diversify.chat_prompts import ChatPrompts, PromptsConfig
from triptych.datamodules.sources.records import RecordSource

ROWS = {
    "gsm8k": [
        {"question": "What is 48 + 24?", "answer": "48 + 24 = <<48+24=72>>72\n#### 72"},
        {
            "id": "g/1",
            "question": "And 1,200 + 34?",
            "answer": "#### 1,234",
            "final_answer": "1234",
        },
    ],
    "svamp": [
        {"id": "chal-1", "question": "How many?", "answer": 7.0, "type": "Addition"},
        {"ID": "chal-2", "Body": "Ann has 1.5 l.", "Question": "How much?", "Answer": 1.5},
    ],
    "aqua": [
        {"question": "Speed?", "options": ["A)324", "B)6 km", "C)0.5"], "correct": "B"},
        {"id": "tal", "problem": "Value of $x$?", "options": ["$7$", "None."], "correct": "A"},
    ],
    "math": [
        {"problem": "Half?", "solution": r"First \boxed{3}, so \boxed{\frac{1}{2}}.", "type": "A"},
        {"problem": "Two?", "solution": "Two.", "answer": "2", "level": "Level 1"},
    ],
}
EXPECTED = {
    "gsm8k": [("What is 48 + 24?", ["72"]), ("And 1,200 + 34?", ["1234"])],
    "svamp": [("How many?", ["7"]), ("Ann has 1.5 l. How much?", ["1.5"])],
    "aqua": [
        ("Speed?\n(A) 324\n(B) 6 km\n(C) 0.5", ["B", "6 km"]),
        ("Value of $x$?\n(A) $7$\n(B) None.", ["A", "$7$"]),
    ],
    "math": [("Half?", [r"\frac{1}{2}"]), ("Two?", ["2"])],
}


def read(folder, task, rows, **settings):
    file = folder / f"{task}.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    prompts = PromptsConfig(
        source=RecordSource(path=str(file)), task=task, held_out_share=0.0, **settings
    )
    data = ChatPrompts(prompts, tokenizer=TokenizerConfig(vocab_size=300), batch_size=1)
    return data.prompts["train"]


@pytest.mark.parametrize("task", ROWS)
def test_rows(tmp_path, task):
    rows = read(tmp_path, task, ROWS[task])
    tail = "\n\nPut the final answer in \\boxed{}."
    assert [(r["prompt"].removesuffix(tail), r["answers"]) for r in rows] == EXPECTED[task]
    assert all(row["prompt"].endswith(tail) for row in rows)
    assert all(row["messages"][-1]["content"] == row["prompt"] for row in rows)


def test_ids_categories_and_ones_own_instruction(tmp_path):
    rows = read(tmp_path, "svamp", ROWS["svamp"], instruction="")
    assert [row["id"] for row in rows] == ["chal-1", "chal-2"]
    assert rows[0]["category"] == "Addition"
    assert rows[0]["prompt"] == "How many?"


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        ("gsm8k", {"question": "q", "answer": "72"}, "'answer' has no #### before"),
        ("gsm8k", {"answer": "#### 72"}, "'question' is missing"),
        ("svamp", {"question": "q"}, "'answer' is missing"),
        (
            "aqua",
            {"question": "q", "options": ["A)1"], "correct": "B"},
            "'correct' is 'B': one of A",
        ),
        ("aqua", {"question": "q", "options": "A)1", "correct": "A"}, "'options' must be a list"),
        ("math", {"problem": "q", "solution": "2"}, r"'solution' has no \\boxed"),
    ],
)
def test_a_bad_row_is_named(tmp_path, task, row, message):
    with pytest.raises(ValueError, match=rf"{task}.jsonl.*line 1: field {message}"):
        read(tmp_path, task, [row])
