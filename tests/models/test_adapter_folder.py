"""Adapters of PEFT as a start, and our adapters as PEFT's: on files as people have them."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.models.tiny_chat_model import TURN_START, chat_tokenizer, tiny_chat_folder
from triptych.commands.asked_model import AskedModel
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.models.adapter_folder import load_causal_lm, named_base, save_adapter
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agent import load_agent
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.lora import LoRAConfig, add_lora, merge_lora
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import insert_memory_layers, load_memory_lm

# peft 0.21 asks transformers 5.23 by a name that is about to go; here it is called directly.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

IDS = torch.tensor([[TURN_START, 700, 701, 702]])
TARGETS = ["q_proj", "v_proj"]


@pytest.fixture
def base(smollm2: str, tmp_path: Path) -> str:
    return tiny_chat_folder(tmp_path / "base", smollm2)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def finetuned(base: str, folder: Path, config: peft.PeftConfig) -> torch.Tensor:
    """Save an adapter that changes the model, as SFT with PEFT does; returns its logits."""
    torch.manual_seed(1)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    return logits(model)


@pytest.fixture
def sft(base: str, tmp_path: Path) -> tuple[str, torch.Tensor]:
    config = peft.LoraConfig(r=4, target_modules=TARGETS, task_type="CAUSAL_LM")
    return str(tmp_path / "sft"), finetuned(base, tmp_path / "sft", config)


def test_a_start_from_an_adapter_is_the_merged_model_everywhere(base: str, sft, tmp_path: Path):
    folder, expected = sft
    assert (logits(load_causal_lm(base)) - expected).abs().max() > 0.01
    starts = {
        "base": load_causal_lm(folder),
        "init_from": load_memory_lm(folder),
        "agent": load_agent(folder).model,
        "ask": AskedModel(Path(folder), "cpu").model,
    }
    for model in starts.values():
        torch.testing.assert_close(logits(model), expected, atol=1e-5, rtol=0)
        assert not [name for name, _ in model.named_parameters() if "lora" in name]
    # An adapter without a tokenizer uses that of its base.
    ours = build_tokenizer(TokenizerConfig(path=folder), list, "", tmp_path)
    assert ours.get_vocab() == chat_tokenizer(base).get_vocab()


@pytest.mark.parametrize("trainable", ["all", "lora"])
def test_the_reference_is_where_training_began(sft, trainable: str):
    folder, expected = sft
    tokenizer = load_agent(folder).tokenizer
    config = CausalLMPolicyConfig(
        base=BaseLMConfig(pretrained=folder), trainable=trainable, max_new_tokens=6
    )
    policy = build_policy(config, len(tokenizer), tokenizer)
    torch.testing.assert_close(logits(policy.model), expected, atol=1e-5, rtol=0)
    rollout = policy.sample([{"prompt_ids": IDS[0].tolist(), "prompt": "x"}], 4)
    start = policy.token_log_prob(rollout)
    assert torch.equal(policy.reference_token_log_prob(rollout), start)
    learns = {name for name, p in policy.named_parameters() if p.requires_grad}
    assert learns
    assert (trainable == "lora") == all("lora_" in name for name in learns)


def test_an_adapter_with_new_tokens_brings_their_embeddings(smollm2: str, tmp_path: Path):
    base = tiny_chat_folder(tmp_path / "base", smollm2)
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|think|>"]})
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(len(tokenizer))
    config = peft.LoraConfig(r=2, target_modules=TARGETS, task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(model, config)
    adapted.save_pretrained(tmp_path / "sft", save_embedding_layers=True)
    loaded = load_causal_lm(str(tmp_path / "sft"))
    assert len(loaded.get_input_embeddings().weight) == len(tokenizer)
    torch.testing.assert_close(logits(loaded), logits(adapted))


def test_what_cannot_be_merged_is_refused(base: str, sft, tmp_path: Path):
    prompts = peft.PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    finetuned(base, tmp_path / "soft", prompts)
    with pytest.raises(ValueError, match="soft cannot be merged into its base"):
        load_causal_lm(str(tmp_path / "soft"))
    shutil.rmtree(base)
    with pytest.raises(ValueError, match="base, which is not there: correct base_model_name"):
        load_causal_lm(sft[0])


def adapted(base: str, **settings):
    model = load_causal_lm(base)
    add_lora(model, LoRAConfig(rank=3, **settings))
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.1
    return model


@pytest.mark.parametrize("targets", ["all_linear", "attention"])
def test_our_adapters_load_in_peft(base: str, tmp_path: Path, targets: str):
    model = adapted(base, targets=targets)
    save_adapter(model, tmp_path / "adapter")
    expected = logits(model)
    theirs = peft.PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base), tmp_path / "adapter"
    )
    assert torch.equal(logits(theirs), expected)
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(logits(by_transformers), expected)
    merge_lora(model)
    torch.testing.assert_close(logits(load_memory_lm(tmp_path / "adapter")), logits(model))
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    attention = {"q_proj", "k_proj", "v_proj", "o_proj"}
    feed_forward = {"gate_proj", "up_proj", "down_proj"} if targets == "all_linear" else set()
    assert set(config["target_modules"]) == attention | feed_forward
    names = {file.name for file in (tmp_path / "adapter").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= names
    assert "model.safetensors" not in names


def test_only_a_model_in_a_folder_can_be_named_as_a_base(base: str, sft):
    model = adapted(base)
    assert named_base(model) == base
    model.model.norm.weight.requires_grad_(True)  # it would be lost
    assert named_base(model) is None
    assert named_base(load_causal_lm(base)) is None  # no adapters
    assert named_base(adapted(sft[0])) is None  # its start is a merged adapter
    memory = insert_memory_layers(
        load_causal_lm(base), MemoryConfig(layers=[1], num_keys=8, num_heads=1, top_k=2)
    )
    add_lora(memory, LoRAConfig(rank=2))
    assert named_base(memory) is None
