"""Texts in parts have the tokens of the whole text."""

import json

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_replies import asks_in_chat, encode_chats
from triptych.datamodules.batches.cut_tokens import encode_parts
from triptych.datamodules.batches.prompted_documents import Continuation, encode_continuations
from triptych.datamodules.batches.tokenizer import (
    TokenizerConfig,
    build_tokenizer,
    document_start,
    encode_texts,
    train_bpe,
)
from triptych.datamodules.remember.facts.fact_documents import encode_rendering
from triptych.datamodules.remember.facts.fact_rows import read_facts
from triptych.datamodules.remember.facts.fact_templates import FactTemplates, Rendering
from triptych.datamodules.remember.facts.question_template import PLAIN_FORMS
from triptych.datamodules.sources.records import RecordSource
from triptych.models.end_tokens import turn_end

TEXTS = ["Question: What is the capital of France? Answer: Paris", "Paris is a town in France."]


@pytest.fixture(scope="module")
def sentencepiece():
    """A tokenizer with Llama 2's normaliser, which puts a mark before every text."""
    normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    trained = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True))
    trained.normalizer = normalizer
    trained.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    trained.train_from_iterator(TEXTS * 50, trainer)
    state = json.loads(trained.to_str()) | {"pre_tokenizer": None}
    backend = Tokenizer.from_str(json.dumps(state))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback()])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_no_mark_of_a_beginning_stands_within_a_text(sentencepiece):
    rendering = Rendering("The capital of France is", " Paris", ".")
    document = encode_rendering(sentencepiece, rendering, "answer")
    (whole,) = encode_texts(sentencepiece, [rendering.text])
    assert document.ids[1:-1].tolist() == whole
    labelled = document.labels[document.labels != -100].tolist()
    assert sentencepiece.convert_ids_to_tokens(labelled) == ["▁Paris", "</s>"]
    apart = encode_texts(sentencepiece, [rendering.prompt, rendering.answer, rendering.remainder])
    assert [token for part in apart for token in part] != whole  # so were they before


def test_continuations_are_cut_from_the_whole_text(sentencepiece):
    item = [Continuation("Question: What? Answer:", " Paris", ends=True)]
    (document,) = encode_continuations(sentencepiece, [item], 64, "error").documents
    (whole,) = encode_texts(sentencepiece, ["Question: What? Answer: Paris"])
    assert document.ids[1:-1].tolist() == whole


def test_a_token_across_the_bound_is_cut_in_two(sentencepiece):
    (whole,) = encode_texts(sentencepiece, ["France"])
    assert len(whole) == 1
    ((first, second),) = encode_parts(sentencepiece, [("Fra", "nce")])
    assert sentencepiece.decode(first + second).strip() == "France"
    assert "▁" not in "".join(sentencepiece.convert_ids_to_tokens(second))


def test_tokens_of_byte_level_tokenizers_are_those_of_the_parts():
    templates = FactTemplates.from_file()
    facts = read_facts(RecordSource(limit=150), templates)
    wordings = [r for f in facts for r in (*templates.statements(f), *templates.questions(f))]
    tokenizer = train_bpe(TokenizerConfig(vocab_size=1024), (r.text for r in wordings))
    parts = [(r.prompt, r.answer, r.remainder) for r in wordings]
    assert encode_parts(tokenizer, parts) == [encode_texts(tokenizer, part) for part in parts]
    assert document_start(tokenizer) == [tokenizer.bos_token_id]


@pytest.fixture
def chat_tokenizer(smollm2, tmp_path):
    return build_tokenizer(TokenizerConfig(path=smollm2), list, "", tmp_path)


def test_a_chat_model_starts_documents_as_its_tokenizer_does(chat_tokenizer):
    assert document_start(chat_tokenizer) == []
    rendering = Rendering("The capital of France is", " Paris", ".")
    document = encode_rendering(chat_tokenizer, rendering, "all")
    assert document.ids[:-1].tolist() == chat_tokenizer("The capital of France is Paris.").input_ids


def test_replies_are_those_of_the_template(chat_tokenizer):
    messages = [{"role": "user", "content": "Who wrote Emma?"}]
    messages.append({"role": "assistant", "content": "Jane Austen wrote Emma."})
    text = chat_tokenizer.apply_chat_template(messages, tokenize=False)
    (chat,) = encode_chats(chat_tokenizer, [("Who wrote Emma?", "Jane Austen wrote Emma.")])
    ids = [*chat.prompt, *chat.reply, *chat.turn_end]
    assert chat_tokenizer.decode(ids) + "\n" == text
    assert chat.turn_end == [turn_end(chat_tokenizer)]
    assert chat_tokenizer.convert_ids_to_tokens(chat.turn_end) == ["<|im_end|>"]
    assert chat_tokenizer.decode(chat.reply) == "Jane Austen wrote Emma."


def test_which_form_is_used(chat_tokenizer, sentencepiece):
    assert asks_in_chat("auto", chat_tokenizer, PLAIN_FORMS)
    assert not asks_in_chat("plain", chat_tokenizer, PLAIN_FORMS)
    assert not asks_in_chat("auto", sentencepiece, PLAIN_FORMS)
    with pytest.raises(ValueError, match="form is chat, but the tokenizer has no chat template"):
        asks_in_chat("chat", sentencepiece, PLAIN_FORMS)
    chat_tokenizer.chat_template = PLAIN_FORMS[0]
    assert not asks_in_chat("auto", chat_tokenizer, PLAIN_FORMS)
