"""Continuations of prompts as documents; items that are too long."""

import pytest
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.prompted_documents import (
    Continuation,
    encode_continuations,
    prompt_length,
)
from triptych.datamodules.batches.tokenizer import TokenizerConfig, train_bpe


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of bytes after three special tokens."""
    return train_bpe(TokenizerConfig(vocab_size=259), ["x"])


def text(tokenizer, ids) -> str:
    return tokenizer.decode(ids, skip_special_tokens=True)


def test_labels_lie_on_the_continuation_alone(tokenizer):
    items = [
        [Continuation("Ja", " so", ends=True)],
        [Continuation("No", " so"), Continuation("", "x")],
    ]
    found = encode_continuations(tokenizer, items, 20, "error")
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    first, second, third = found.documents
    assert first.ids.tolist() == [bos, *tokenizer.encode("Ja so", add_special_tokens=False), eos]
    assert first.labels.tolist() == [-100] * 3 + first.ids[3:].tolist()
    assert text(tokenizer, second.ids) == "No so"
    assert second.labels.tolist() == [-100] * 3 + second.ids[3:].tolist()
    assert third.ids.tolist() == [bos, *tokenizer.encode("x", add_special_tokens=False)]
    assert [prompt_length(document) for document in found.documents] == [3, 3, 1]
    assert (found.item_of, found.items, found.num_left_out) == ([0, 1, 1], [0, 1], 0)


LONG = [
    [Continuation("abcdefghij", " k")],  # 1 + 10 + 2 tokens
    [Continuation("abc", " k")],  # 6
    [Continuation("abcdef", " kl"), Continuation("abcdef", " klmnop")],  # 10 and 14
    [Continuation("a", " klmnopqrstuv")],  # 15, of them 13 of the continuation
]


def test_long_rows_are_refused(tokenizer):
    with pytest.raises(
        ValueError, match=r"3 of 4 rows .*context of 12 tokens; the longest has 15 \('a'\).*skip"
    ):
        encode_continuations(tokenizer, LONG, 12, "error")
    assert len(encode_continuations(tokenizer, LONG, 15, "error").documents) == 5


def test_long_rows_are_left_out(tokenizer):
    found = encode_continuations(tokenizer, LONG, 12, "skip")
    assert (found.items, found.num_left_out) == ([1], 3)
    with pytest.raises(ValueError, match=r"4 of 4 rows .* give shorter rows"):
        encode_continuations(tokenizer, LONG, 5, "skip")


def test_long_prompts_lose_their_beginning(tokenizer):
    found = encode_continuations(tokenizer, LONG, 12, "cut")
    texts = [text(tokenizer, document.ids) for document in found.documents]
    # 12 tokens: BOS, and 9 + 2, 3 + 2, 6 + 3 and 4 + 7; each continuation has its own prompt.
    assert texts == ["bcdefghij k", "abc k", "abcdef kl", "cdef klmnop"]
    assert all(document.ids[0] == tokenizer.bos_token_id for document in found.documents)
    assert [len(document) for document in found.documents] == [12, 6, 10, 12]
    assert (found.items, found.num_left_out) == ([0, 1, 2], 1)


def test_room_to_generate_into_counts(tokenizer):
    item = [[Continuation("abcdef", " k", ends=True)]]  # 1 + 6 + 3
    assert encode_continuations(tokenizer, item, 10, "error", room=3).documents
    with pytest.raises(ValueError, match="the longest has 11"):
        encode_continuations(tokenizer, item, 10, "error", room=4)
    (document,) = encode_continuations(tokenizer, item, 10, "cut", room=5).documents
    assert text(tokenizer, document.ids) == "cdef k"


def test_nothing_to_say_is_refused(tokenizer):
    with pytest.raises(ValueError, match="nothing follows the prompt 'abc'"):
        encode_continuations(tokenizer, [[Continuation("abc", "")]], 10, "error")
