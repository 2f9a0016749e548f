"""What an export knows: how it was asked, where it came from, and how others load it."""

import ast
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from tests.conftest import run_in
from triptych import ROOT
from triptych.callbacks.exporting.asking_form import exported_tokenizer
from triptych.callbacks.exporting.model_card import base_model, data_sources
from triptych.datamodules.batches.chat_template import (
    PLAIN_TEMPLATE,
    encode_prompts,
    encode_replies,
)
from triptych.datamodules.batches.tokenizer import TokenizerConfig, train_bpe
from triptych.datamodules.remember.facts.fact_documents import encode_rendering
from triptych.datamodules.remember.facts.fact_templates import question_rendering
from triptych.datamodules.remember.facts.question_template import QUESTION_TEMPLATE

QUESTION = "As its capital, Afghanistan has which city?"
PRETRAINING = {
    "data": {
        "class_path": "triptych.datamodules.remember.facts.facts.Facts",
        "init_args": {
            "facts": {"num_facts": 40, "validation_facts": 4},
            "tokenizer": {"vocab_size": 400},
            "context_length": 96,
            "batch_size": 2,
        },
    },
    "model": {
        "class_path": "triptych.lit_modules.remember.memory_pretraining.MemoryPretraining",
        "init_args": {
            "base": {
                "hidden_size": 16,
                "num_layers": 2,
                "num_heads": 2,
                "max_position_embeddings": 96,
            },
            "memory": {"layers": [1], "num_keys": 8, "num_heads": 2, "top_k": 4},
            "max_new_tokens": 5,
        },
    },
    "trainer": {"max_steps": 1, "val_check_interval": 1, "log_every_n_steps": 1},
}


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return run_in(tmp_path_factory.mktemp("run"), name="facts", **PRETRAINING)


@pytest.fixture(scope="module")
def export(run):
    return run / "export"


@pytest.fixture
def trained_tokenizer():
    texts = ["Question: Who wrote Emma? Answer: Jane Austen", "User: Name a fruit.\nAssistant:\n"]
    tokenizer = train_bpe(TokenizerConfig(vocab_size=300), texts)
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    return tokenizer


def test_the_export_asks_with_the_token_ids_of_training(export):
    tokenizer = AutoTokenizer.from_pretrained(export)
    document = encode_rendering(tokenizer, question_rendering(QUESTION, "Kabul"), "answer")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True
    )["input_ids"]
    answered = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": "Kabul"}]
    )["input_ids"]
    assert asked == document.ids[: len(asked)].tolist()
    assert answered == document.ids.tolist()
    assert (document.labels[: len(asked)] == -100).all()
    assert document.labels[len(asked)] != -100  # the prompt ends where the answer begins


def test_the_export_knows_its_limits(export):
    settings = json.loads((export / "generation_config.json").read_text())
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert tokenizer.model_max_length == 96
    assert settings["max_new_tokens"] == 5
    assert settings["eos_token_id"] == tokenizer.eos_token_id
    assert settings["pad_token_id"] == tokenizer.pad_token_id
    assert AutoModelForCausalLM.from_pretrained(export).generation_config.max_new_tokens == 5


def test_of_several_turns_the_last_question_is_asked(trained_tokenizer):
    tokenizer = exported_tokenizer(trained_tokenizer, QUESTION_TEMPLATE, None)
    messages = [
        {"role": "user", "content": "Who?"},
        {"role": "assistant", "content": "Austen"},
        {"role": "user", "content": "When?"},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<|bos|>Question: When? Answer:"
    with pytest.raises(Exception, match="leave out the system message"):
        tokenizer.apply_chat_template([{"role": "system", "content": "x"}], tokenize=False)


def test_the_plain_template_gives_the_ids_of_policy_training(trained_tokenizer):
    """A policy that starts from an export with the template is trained on the same ids."""
    conversations = [
        [{"role": "user", "content": "Name a <|eos|> fruit.\n"}],
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Name a fruit."},
            {"role": "assistant", "content": "pear"},
            {"role": "user", "content": "And now?"},
        ],
    ]
    before = encode_prompts(trained_tokenizer, conversations)
    tokenizer = exported_tokenizer(trained_tokenizer, PLAIN_TEMPLATE, 64)
    assert encode_prompts(tokenizer, conversations) == before
    full = [*conversations[0], {"role": "assistant", "content": "pear"}]
    taught = before[0] + encode_replies(trained_tokenizer, ["pear"])[0]
    # the user's message spells a special token; without it the whole document is the same
    full[0] = {"role": "user", "content": "Name a fruit."}
    taught = encode_prompts(trained_tokenizer, [full[:1]])[0] + taught[len(before[0]) :]
    assert tokenizer.apply_chat_template(full)["input_ids"] == taught


def test_a_chat_model_keeps_its_template_and_gets_ours_by_name(trained_tokenizer, tmp_path):
    trained_tokenizer.chat_template = "{{ messages[0]['content'] }}"
    exported_tokenizer(trained_tokenizer, QUESTION_TEMPLATE, 64).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    asked = [{"role": "user", "content": "Who?"}]
    options = {"tokenize": False, "add_generation_prompt": True}
    assert tokenizer.apply_chat_template(asked, **options) == "Who?"
    ours = tokenizer.apply_chat_template(asked, chat_template="training", **options)
    assert ours == "<|bos|>Question: Who? Answer:"


# -- elsewhere ------------------------------------------------------------------------------------


def test_auto_classes_load_it_without_a_warning(export, caplog, recwarn):
    logging.getLogger("transformers").propagate = True
    with caplog.at_level(logging.WARNING, "transformers"):
        model = AutoModelForCausalLM.from_pretrained(export)
        tokenizer = AutoTokenizer.from_pretrained(export)
        text = pipeline("text-generation", model=model, tokenizer=tokenizer)
        reply = text([{"role": "user", "content": QUESTION}])[0]["generated_text"]
    assert reply[-1]["role"] == "assistant"
    assert not caplog.records
    assert not recwarn.list
    assert model.config.memory["layers"] == [1]


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # by PEFT
def test_peft_adapts_it_and_loads_it_again(export, tmp_path):
    ids = torch.arange(5)[None]
    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(export),
        LoraConfig(target_modules=["q_proj"], r=2, init_lora_weights=False),
    ).eval()
    model.save_pretrained(tmp_path)
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(export), tmp_path)
    torch.testing.assert_close(again.eval()(ids).logits, model(ids).logits)


def test_what_is_saved_again_is_complete(export, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(export, trust_remote_code=True)
    model.save_pretrained(tmp_path)
    assert (tmp_path / "modeling_triptych.py").read_text() == (
        export / "modeling_triptych.py"
    ).read_text()
    assert {path.name for path in tmp_path.glob("*.py")} == {"modeling_triptych.py"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("first", "options", "path", "expected"),
    [
        ("import triptych", "", ROOT, "MemoryLlamaForCausalLM"),
        ("", ", trust_remote_code=True", ROOT, "MemoryLlamaForCausalLM"),
        ("", "", ROOT, "trust_remote_code=True"),
        ("", ", trust_remote_code=True", Path("/nowhere"), "pip install triptych"),
    ],
)
def test_a_fresh_process_loads_it(export, tmp_path, first, options, path, expected):
    code = (
        f"{first}\nfrom transformers import AutoModelForCausalLM\n"
        f"print(type(AutoModelForCausalLM.from_pretrained({str(export)!r}{options})).__name__)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(path), "HF_HOME": str(tmp_path), "PATH": "", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        input="",
    )
    assert expected in done.stdout + done.stderr


# -- the card -------------------------------------------------------------------------------------


def test_the_card_tells_what_the_run_knows(export, run):
    card = ModelCard.load(export / "README.md")
    assert card.data.library_name == "transformers"
    assert card.data.license is None  # nobody has stated one
    summary = json.loads((run / "summary.json").read_text())
    assert summary["data_fingerprint"] in card.text
    assert "Question: What is the capital of France? Answer:" in card.text
    assert f"{summary['metrics']['val/facts/exact_match']:.4g}" in card.text
    settings = (export / "config.yaml").read_text()
    assert "MemoryPretraining" in settings
    assert "tracking" not in settings


def test_the_snippet_of_the_card_works_as_printed(run, monkeypatch, capsys):
    text = (run / "export" / "README.md").read_text()
    code = text.split("```python\n")[1].split("```")[0]
    ast.parse(code)
    monkeypatch.chdir(run)
    exec(code, {})
    assert capsys.readouterr().out


def test_base_and_licence_are_those_of_the_start(tmp_path):
    ModelCard("---\nlicense: apache-2.0\nbase_model: some/base\n---\nx").save(
        tmp_path / "README.md"
    )
    assert base_model({}, str(tmp_path)) == ("some/base", "apache-2.0")
    assert base_model({"init_args": {"base": {"pretrained": str(tmp_path)}}}, None) == (
        str(tmp_path),
        "apache-2.0",
    )
    assert base_model({"init_args": {"base": {"pretrained": "no/such"}}}, None) == ("no/such", None)
    assert base_model({}, None) == (None, None)


def test_sources_are_those_of_the_settings():
    source = {"path": "hub:me/facts", "split": "train", "columns": {}}
    assert list(data_sources({"init_args": {"facts": {"source": source}}})) == ["me/facts"]
