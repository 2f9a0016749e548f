"""Documents cut into chunks."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.datamodules.batches.chunks import chunk_text, sentences


def at_most(num_characters):
    return lambda text: len(text) <= num_characters


def test_sentences_end_at_marks_before_white_space():
    text = 'It cost 3.5 euros. "Really?" (Yes!) No\nend here\n\nA new paragraph'
    assert sentences(text) == [
        "It cost 3.5 euros.", '"Really?"', "(Yes!)", "No\nend here", "A new paragraph",
    ]  # fmt: skip
    assert sentences("") == []


def test_chunks_hold_as_many_sentences_as_fit():
    text = "One. Two. Three.\n\nFour. Five."
    assert chunk_text(text, at_most(100)) == [text]
    assert chunk_text(text, at_most(16)) == ["One. Two. Three.", "Four. Five."]
    assert chunk_text(text, at_most(10)) == ["One. Two.", "Three.", "Four.", "Five."]
    assert chunk_text(text, at_most(12)) == ["One. Two.", "Three.", "Four. Five."]


def test_a_long_sentence_is_cut_between_words_and_goes_on_in_the_next_chunk():
    text = "Go. One two three four five six. Yes. No."
    assert chunk_text(text, at_most(14)) == ["Go.", "One two three", "four five six.", "Yes. No."]
    assert chunk_text("one two three. Yes.", at_most(12)) == ["one two", "three. Yes."]


def test_a_long_word_is_cut_within():
    assert chunk_text("ab abcdefgh. cd", at_most(3)) == ["ab", "abc", "def", "gh.", "cd"]


def test_nothing_fits():
    with pytest.raises(ValueError, match="not even 'a' fits"):
        chunk_text("abc", lambda text: False)


TEXTS = st.text(alphabet='ab é.!?"\n', max_size=120)


@settings(deadline=None)
@given(text=TEXTS, room=st.integers(1, 30))
def test_nothing_is_lost_and_everything_fits(text, room):
    chunks = chunk_text(text, at_most(room))
    assert re.sub(r"\s", "", "".join(chunks)) == re.sub(r"\s", "", text)
    for chunk in chunks:
        assert 0 < len(chunk) <= room
        assert chunk == chunk.strip()
        assert chunk in text


SENTENCES = st.lists(st.text(alphabet="ab é", max_size=8), min_size=1, max_size=12)


@settings(deadline=None)
@given(parts=SENTENCES, room=st.integers(10, 40))
def test_sentences_that_fit_are_taken_one_after_another_while_they_fit(parts, room):
    parts = [f"a{part}".strip() + "." for part in parts]
    expected, current = [], ""
    for part in parts:
        longer = f"{current} {part}".strip()
        if len(longer) > room:
            expected.append(current)
            longer = part
        current = longer
    assert chunk_text(" ".join(parts), at_most(room)) == [*expected, current]
