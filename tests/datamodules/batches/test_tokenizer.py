"""Byte-level BPE restores any text; tokenizers are deterministic, cached and complete."""

import json
import logging
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.tokenizer import (
    BOS,
    EOS,
    PAD,
    TokenizerConfig,
    build_tokenizer,
    encode_texts,
    share_bytes,
    token_num_bytes,
    train_bpe,
)

TEXTS = ["the quick brown fox jumps over the lazy dog", "Zürich, 東京 and the 🦊", "a\n\tb  c"] * 9


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    return build_tokenizer(TokenizerConfig(vocab_size=300), lambda: TEXTS, "texts", folder)


@given(text=st.text() | st.sampled_from([BOS, f"a{EOS} b", "<unk>"]))
def test_any_text_comes_back_and_its_bytes_are_counted(tokenizer, text):
    (ids,) = encode_texts(tokenizer, [text])
    assert tokenizer.decode(ids) == text
    assert token_num_bytes(tokenizer)[ids].sum() == len(text.encode())
    assert not set(ids) & set(tokenizer.all_special_ids)


def test_special_tokens(tokenizer):
    names = [tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token]
    assert names == [BOS, EOS, PAD]
    assert len(set(tokenizer.all_special_ids)) == 3
    assert tokenizer.padding_side == "left"
    assert token_num_bytes(tokenizer)[tokenizer.all_special_ids].tolist() == [0, 0, 0]
    assert len(token_num_bytes(tokenizer)) == len(tokenizer) == 300


def test_training_is_deterministic():
    first, second = (train_bpe(TokenizerConfig(vocab_size=300), TEXTS) for _ in range(2))
    assert first.backend_tokenizer.to_str() == second.backend_tokenizer.to_str()


def test_a_trained_tokenizer_is_kept_and_told_apart_by_texts_and_settings(tmp_path):
    calls = []

    def texts():
        calls.append(1)
        return TEXTS

    def build(vocab_size=300, fingerprint="a"):
        return build_tokenizer(TokenizerConfig(vocab_size=vocab_size), texts, fingerprint, tmp_path)

    first = build()
    assert build().backend_tokenizer.to_str() == first.backend_tokenizer.to_str()
    assert len(calls) == 1
    build(vocab_size=310)
    build(fingerprint="b")
    assert len(calls) == 3


def test_processes_that_want_the_same_tokenizer_train_it_once(tmp_path):
    calls = []

    def texts():
        calls.append(1)
        return TEXTS

    config = TokenizerConfig(vocab_size=300)
    with ThreadPoolExecutor(4) as pool:
        built = list(pool.map(lambda _: build_tokenizer(config, texts, "a", tmp_path), range(4)))
    assert len(calls) == 1
    assert len({tokenizer.backend_tokenizer.to_str() for tokenizer in built}) == 1


def test_an_interrupted_training_leaves_nothing_behind(tmp_path):
    def broken():
        yield from TEXTS
        raise OSError("disk gone")

    config = TokenizerConfig(vocab_size=300)
    with pytest.raises(OSError, match="disk gone"):
        build_tokenizer(config, broken, "a", tmp_path)
    assert not [path for path in (tmp_path / "tokenizers").iterdir() if path.is_dir()]
    assert len(build_tokenizer(config, lambda: TEXTS, "a", tmp_path)) == 300


def test_only_so_many_bytes_are_read():
    read = []

    def texts():
        for number in range(100):
            read.append(number)
            yield "abcde fghij"

    train_bpe(TokenizerConfig(vocab_size=300, max_training_bytes=30), texts())
    assert read == [0, 1, 2]


@given(st.lists(st.lists(st.text(min_size=1, max_size=9), max_size=9), max_size=4))
def test_sharing_bytes_keeps_every_text_and_each_source_in_order(sources):
    tagged = [[f"{index}{text}" for text in source] for index, source in enumerate(sources)]
    shared = list(share_bytes(tagged))
    for index, source in enumerate(tagged):
        assert [text for text in shared if text.startswith(str(index))] == source


def test_a_small_source_is_not_crowded_out():
    books, facts = ["x" * 1000] * 50, ["y" * 10] * 100
    taken = list(share_bytes([books, facts]))[:105]
    assert taken.count(facts[0]) == 100


@pytest.mark.parametrize("size", [1, 258])
def test_too_small_a_vocabulary_is_refused(tmp_path, size):
    with pytest.raises(ValueError, match=f"vocab_size is {size}.*at least 259"):
        build_tokenizer(TokenizerConfig(vocab_size=size), lambda: TEXTS, "a", tmp_path)


def test_nothing_to_train_on_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no text to train the tokenizer on"):
        build_tokenizer(TokenizerConfig(), list, "a", tmp_path)


def test_a_folder_and_a_file_are_loaded(tokenizer, tmp_path):
    tokenizer.save_pretrained(str(tmp_path))
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = build_tokenizer(TokenizerConfig(path=str(path)), list, "", tmp_path)
        assert encode_texts(loaded, TEXTS) == encode_texts(tokenizer, TEXTS)
        assert loaded.eos_token == EOS
        assert loaded.padding_side == "left"


def test_missing_special_tokens_get_stand_ins(tokenizer, tmp_path):
    bare = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer, eos_token=EOS, bos_token=None, pad_token=None
    )
    bare.save_pretrained(str(tmp_path))
    loaded = build_tokenizer(TokenizerConfig(path=str(tmp_path)), list, "", tmp_path)
    assert loaded.bos_token == loaded.pad_token == loaded.eos_token == EOS


def test_a_tokenizer_without_end_of_text_is_refused(tmp_path):
    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]"))
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match=r"no end-of-text token.*eos_token"):
        build_tokenizer(TokenizerConfig(path=str(tmp_path / "tokenizer.json")), list, "", tmp_path)


def test_a_missing_tokenizer_is_named(tmp_path):
    missing = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=f"cannot load a tokenizer from '{missing}'.*\"train\""):
        build_tokenizer(TokenizerConfig(path=missing), list, "", tmp_path)


def test_bytes_of_sentencepiece_tokens(tmp_path):
    vocabulary = {"<unk>": 0, "</s>": 1, "<0x41>": 2, "▁the": 3, "é": 4, "▁": 5}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", unk_token="<unk>"
    )
    assert token_num_bytes(tokenizer).tolist() == [0, 0, 1, 4, 2, 1]


def test_the_tokenizer_of_a_memory_model_raises_no_false_alarm(tokenizer, tmp_path):
    """Of a family that `import triptych` does not register, read before its model."""
    tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "memory-xglm"}))
    heard: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: heard.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("transformers").addHandler(handler)
    try:
        build_tokenizer(TokenizerConfig(path=str(tmp_path)), lambda: [], "texts", tmp_path)
    finally:
        logging.getLogger("transformers").removeHandler(handler)
    assert not heard
