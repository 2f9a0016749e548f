"""Chats as background: the template of a chat model, replies made once, none for plain models."""

import json
from collections import Counter
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.datamodules.batches.packing import IGNORED_LABEL
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember import model_replies
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.datamodules.remember.text.chats import EVERYDAY_PROMPTS, ChatsConfig
from triptych.datamodules.remember.text.text_and_facts import TextAndFacts
from triptych.datamodules.sources.records import RecordSource

CHATML = (
    "{%- for message in messages -%}"
    "{{- '<' + message['role'] + '>' + message['content'] + eos_token -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<assistant>' -}}{%- endif -%}"
)


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


CONVERSATIONS = [
    {
        "conversation": [
            turn("user", "Name a colour."),
            turn("assistant", "Blue."),
            turn("user", "?"),
        ]
    },
    {"conversation": [turn("user", "What is 1+1?"), turn("assistant", "Two.")]},
    {"conversation": [turn("user", "Rude words"), turn("assistant", "No.")], "toxic": True},
]


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny model whose tokenizer has a chat template."""
    folder = export_tiny_model(tmp_path_factory.mktemp("chat") / "export", memory=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = CHATML
    tokenizer.save_pretrained(folder)
    return str(folder)


def mixture(model: str, chats: ChatsConfig, cache: Path, **options) -> TextAndFacts:
    facts = FactsConfig(num_facts=20)
    settings = {"context_length": 96, "batch_size": 8, "cache_dir": str(cache)} | options
    tokenizer = TokenizerConfig(path=model, vocab_size=400)
    return TextAndFacts(facts=facts, chats=chats, tokenizer=tokenizer, **settings)


def rows_of(path: Path, *rows: dict) -> RecordSource:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return RecordSource(path=str(path))


def documents(data: TextAndFacts) -> list:
    chats = data.parts[2].documents(data._row_formats()[2])
    return [chats.document(index, 0) for index in range(len(chats))]


def test_conversations_of_a_file_are_read_in_the_models_template(smollm2, tmp_path):
    source = rows_of(tmp_path / "chats.jsonl", *CONVERSATIONS)
    data = mixture(smollm2, ChatsConfig(source=source), tmp_path, context_length=128)
    first, second = documents(data)
    text = data.tokenizer.decode(second.ids)
    assert text.endswith(
        "<|im_start|>user\nWhat is 1+1?<|im_end|>\n<|im_start|>assistant\nTwo.<|im_end|>"
    )
    labelled = second.ids[second.labels != IGNORED_LABEL]
    assert data.tokenizer.decode(labelled) == "Two.<|im_end|>"
    assert "Blue." in data.tokenizer.decode(first.ids)


def test_chats_have_their_share_of_the_rows(chat_model, tmp_path):
    source = rows_of(tmp_path / "chats.jsonl", *CONVERSATIONS)
    chats = ChatsConfig(source=source)
    data = mixture(
        chat_model, chats, tmp_path, chats_share=0.5, facts_share=0.2, rows_per_epoch=800
    )
    assert data.source_names == ["text", "facts", "chats"]
    drawn: Counter[int] = Counter()
    for batch in data.train_dataloader():
        drawn.update(batch["source_ids"].tolist())
        for ids, source_id in zip(batch["input_ids"], batch["source_ids"], strict=True):
            if source_id == 2:
                assert "<assistant>" in data.tokenizer.decode(ids)
    shares = [drawn[source] / drawn.total() for source in range(3)]
    assert shares == pytest.approx([0.4, 0.1, 0.5], abs=0.05)


def test_prompts_without_a_reply_get_the_models_own_once(chat_model, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("Hello!\nWhat is a fruit?\n")
    chats = ChatsConfig(RecordSource(path=str(tmp_path / "prompts.txt")), max_new_tokens=5)
    made = documents(mixture(chat_model, chats, tmp_path))
    assert len(made) == 2
    data = mixture(chat_model, chats, tmp_path)
    for document in made:
        reply = document.ids[document.labels != IGNORED_LABEL]
        assert 1 <= len(reply) <= 6
    assert "<user>Hello!" in data.tokenizer.decode(made[0].ids)

    def refuse(source: str) -> None:
        raise AssertionError(f"{source} was asked again")

    monkeypatch.setattr(model_replies, "_loaded", refuse)
    again = documents(data)
    assert [one.ids.tolist() for one in again] == [one.ids.tolist() for one in made]


def test_a_model_trained_here_takes_no_chats(tmp_path):
    data = mixture("train", ChatsConfig(), tmp_path, chats_share=0.5, rows_per_epoch=64)
    assert data.shares_of_rows() == [0.5, 0.5, 0]
    sources = [batch["source_ids"].tolist() for batch in data.train_dataloader()]
    assert {source for batch in sources for source in batch} == {0, 1}


def test_a_tokenizer_without_its_model_says_what_to_set(smollm2, tmp_path):
    folder = tmp_path / "tokenizer"
    AutoTokenizer.from_pretrained(smollm2).save_pretrained(folder)
    data = mixture(str(folder), ChatsConfig(), tmp_path)
    with pytest.raises(ValueError, match=r"can reply to the chats' prompts .* set chats\.model"):
        documents(data)


def test_prompts_that_fill_the_context_are_refused(chat_model, tmp_path):
    source = rows_of(tmp_path / "chats.jsonl", *CONVERSATIONS)
    data = mixture(chat_model, ChatsConfig(source=source), tmp_path, context_length=8)
    with pytest.raises(ValueError, match=r"no chat of .* fits context_length \(8\)"):
        documents(data)


def test_the_embedded_prompts_are_sixty_different_ones():
    prompts = EVERYDAY_PROMPTS.read_text().splitlines()
    assert len(set(prompts)) == len(prompts) == 60
