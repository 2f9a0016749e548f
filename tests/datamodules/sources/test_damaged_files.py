"""Damaged and hostile files of data: one sentence with file and line, and no hang."""

import json
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from triptych.datamodules.batches.tokenizer import TokenizerConfig, _without_long_words, train_bpe
from triptych.datamodules.diversify.supervised_replies import RepliesConfig, SupervisedReplies
from triptych.datamodules.sources.record_files import BadRowError, file_rows
from triptych.datamodules.sources.records import RecordSource


def first_fault(path: Path) -> str:
    try:
        for row in file_rows(path):
            if isinstance(row, BadRowError):
                return str(row)
    except ValueError as error:
        return str(error)
    raise AssertionError("the file was taken")


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "9" * 6000 + "}", "limit"),
        ('{"a": "\\ud800"}', "half a character"),
        ('{"a": {"b": ["\\udfff"]}}', "half a character"),
        ("{'a': 1}", "property name"),
    ],
    ids=["deep", "long number", "surrogate", "surrogate inside", "quotes"],
)
def test_a_line_that_is_no_json_is_named(tmp_path, line, cause):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": "right"}\n' + line + "\n")
    message = first_fault(path)
    assert message.startswith(f"{path}, line 2: not valid JSON")
    assert cause in message
    assert len(message) < 600


@pytest.mark.parametrize("text", ["[" * 100_000, '[{"a": "\\ud800"}]'])
def test_a_json_file_is_named_whatever_is_wrong(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    assert first_fault(path).startswith(f"{path}: not valid JSON")


def test_a_quote_that_is_never_closed_does_not_swallow_the_rest(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\nq1,a1\n"q2,a2\nq3,a3\nq4,a4\n')
    assert first_fault(path).startswith(f"{path}, line 3: not valid CSV")


def test_quoted_line_ends_are_still_read(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('question,answer\n"one, ""two""\nthree",a\n')
    (row,) = file_rows(path)
    assert row.values == {"question": 'one, "two"\nthree', "answer": "a"}


def test_a_damaged_parquet_file_is_named_at_every_byte(tmp_path):
    path = tmp_path / "rows.parquet"
    rows = pyarrow.table({"text": [f"a text of number {i}" for i in range(40)]})
    pyarrow.parquet.write_table(rows, path)
    content = path.read_bytes()
    faults = []
    for place in range(0, len(content), 7):
        path.write_bytes(content[:place] + bytes([content[place] ^ 0xFF]) + content[place + 1 :])
        try:
            list(file_rows(path))
        except ValueError as error:
            faults.append(str(error))
    assert len(faults) > 20
    assert [fault for fault in faults if str(path) not in fault] == []


def test_a_word_of_many_letters_does_not_hang_the_training_of_a_tokenizer():
    text = "Some words. " + "x" * 300_000 + " and more. " + "=" * 300_000 + json.dumps(["é"] * 9)
    began = time.monotonic()
    tokenizer = train_bpe(TokenizerConfig(vocab_size=300), [text])
    assert time.monotonic() - began < 20
    assert tokenizer.decode(tokenizer("xx ==", add_special_tokens=False).input_ids) == "xx =="


def test_cut_words_are_the_same_text():
    text = "a " + "b" * 2500 + " " + "_" * 1001 + "1" * 1000
    pieces = list(_without_long_words(text))
    assert "".join(pieces) == text
    assert max(map(len, pieces)) <= 1000 + 1002
    assert list(_without_long_words("plain text, " * 500)) == ["plain text, " * 500]


@pytest.mark.parametrize("weights", ["[NaN, 1.0]", "[Infinity, 1.0]", "[-1, 1]", "[0, 0]"])
def test_weights_that_are_no_weights_are_refused_with_their_line(tmp_path, weights):
    path = tmp_path / "replies.jsonl"
    row = '{"prompt": "Name a fruit.", "replies": ["pear", "plum"], "weights": %s}\n'
    path.write_text(row % "[0.5, 0.5]" + row % weights)
    replies = SupervisedReplies(RepliesConfig(RecordSource(str(path))))
    with pytest.raises(ValueError, match=r"replies\.jsonl, line 2: field 'weights' must be finite"):
        replies.prepare_data()
