"""Rewrites: a fake model for the cache, tiny random models for the real path."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    T5Config,
    T5ForConditionalGeneration,
)

from triptych.datamodules.remember.rewriting import (
    ModelRewriter,
    RewriterConfig,
    rewriter_fingerprint,
    rewritten,
)

WORDS = ["<pad>", "</s>", "<unk>", "user", "Say", ":", "red", "green", "blue", "In", "Oslo", "rain"]


def save_tokenizer(folder, chat_template=None):
    words = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, eos_token="</s>", unk_token="<unk>", pad_token="<pad>"
    )
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)


@pytest.fixture
def causal_model(tmp_path):
    folder = tmp_path / "causal"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = LlamaConfig(
        vocab_size=len(WORDS), num_attention_heads=2, num_key_value_heads=2,
        bos_token_id=1, eos_token_id=1, pad_token_id=0, **sizes,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


@pytest.fixture
def seq2seq_model(tmp_path):
    folder = tmp_path / "seq2seq"
    config = T5Config(
        vocab_size=len(WORDS), d_model=16, d_kv=8, d_ff=16, num_layers=1, num_heads=2,
        decoder_start_token_id=0, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    T5ForConditionalGeneration(config).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def config_of(folder, **settings):
    settings = {"num_rewrites": 3, "max_new_tokens": 6, "batch_size": 2, **settings}
    return RewriterConfig(str(folder), instruction="Say : {text}", **settings)


@pytest.mark.parametrize("kind", ["causal_model", "seq2seq_model"])
def test_any_model_rewrites(kind, request):
    folder = request.getfixturevalue(kind)
    texts = ["red green", "blue In Oslo rain", "rain"]
    state = torch.get_rng_state()
    rewrites = ModelRewriter(config_of(folder))(texts)
    assert torch.equal(torch.get_rng_state(), state)
    assert [len(ways) for ways in rewrites] == [3, 3, 3]
    written = [way for ways in rewrites for way in ways]
    assert len(set(written)) > 3  # sampled, not the same each time
    for way in written:
        assert set(way.split()) <= set(WORDS)
        assert len(way.split()) <= 6  # without the prompt
    assert ModelRewriter(config_of(folder))(texts) == rewrites
    assert ModelRewriter(config_of(folder, seed=1))(texts) != rewrites


def test_a_chat_template_is_used(causal_model):
    save_tokenizer(causal_model, "user {{ messages[0]['content'] }}")
    rewriter = ModelRewriter(config_of(causal_model))
    assert rewriter._prompt("rain") == "user Say : rain"


def test_a_model_writes_once(tmp_path):
    calls = []

    def make(config):
        def write(texts):
            calls.append(list(texts))
            return [[f" {text} é\n", text.upper()] for text in texts]

        return write

    expected = [["one é", "ONE"], ["two é", "TWO"]]
    config = RewriterConfig("a/model")
    for _ in range(2):
        assert rewritten(["one", "two"], config, tmp_path, make) == expected
    assert calls == [["one", "two"]]
    rewritten(["one"], config, tmp_path, make)
    rewritten(["one"], RewriterConfig("a/model", seed=1), tmp_path, make)
    assert len(calls) == 3


def test_a_model_that_fails_leaves_nothing_behind(tmp_path):
    def make(config):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        rewritten(["one"], RewriterConfig("a/model"), tmp_path, make)
    assert rewritten(["one"], RewriterConfig("a/model"), tmp_path, lambda _: lambda t: [["x"]]) == [
        ["x"]
    ]


def test_a_model_in_a_folder_counts_by_its_files(causal_model, tmp_path):
    before = rewriter_fingerprint(config_of(causal_model))
    moved = causal_model.rename(tmp_path / "moved")
    assert rewriter_fingerprint(config_of(moved)) == before
    (moved / "generation_config.json").write_text("{}")
    assert rewriter_fingerprint(config_of(moved)) != before


def test_a_model_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"cannot load a model that rewrites from .*nowhere"):
        ModelRewriter(RewriterConfig(str(tmp_path / "nowhere")))


@pytest.mark.parametrize("instruction", ["Rewrite!", "{text} and {text}"])
def test_an_instruction_without_a_place_for_the_text_is_refused(instruction):
    with pytest.raises(ValueError, match=r"model\.instruction is .*write {text} once"):
        RewriterConfig("a/model", instruction=instruction)
