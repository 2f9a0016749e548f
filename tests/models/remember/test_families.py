"""Families that take a memory, from insertion to the loaded file, and those that are refused."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from triptych.models.remember.memory_blocks import refuse_other_ffns, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_config_family import DENSE_FAMILIES, MIXTURE_FAMILIES
from triptych.models.remember.memory_lm import insert_memory_layers, load_memory_lm

SIZES = {
    **{"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    **{"max_position_embeddings": 32, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
EXPERTS = {"num_local_experts": 2, "num_experts": 2, "num_experts_per_tok": 1}
GPT = {"n_embd": 16, "n_layer": 3, "n_head": 2, "n_inner": 24}
OWN = {
    "gpt2": GPT,
    "gptj": GPT | {"rotary_dim": 4},
    "gpt_neo": {"num_layers": 3, "num_heads": 2, "attention_types": [[["global"], 3]]},
    "gemma4_text": {"vocab_size_per_layer_input": 50, "hidden_size_per_layer_input": 4},
    "mixtral": EXPERTS,
    "qwen3_moe": EXPERTS | {"moe_intermediate_size": 8},
    "qwen3_next": EXPERTS
    | {"num_hidden_layers": 4}  # the last one has attention
    | {"moe_intermediate_size": 8, "shared_expert_intermediate_size": 8}
    | {"linear_num_value_heads": 2, "linear_num_key_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "qwen3_5_text": {"num_hidden_layers": 4, "linear_num_value_heads": 2, "linear_num_key_heads": 2}
    | {"linear_key_head_dim": 8, "linear_value_head_dim": 8},
    "gpt_oss": EXPERTS,
    "bloom": {"n_layer": 3, "n_head": 2},
}


def plain(family: str) -> PreTrainedModel:
    config = AutoConfig.for_model(family, **(SIZES | OWN.get(family, {})))
    return AutoModelForCausalLM.from_config(config).eval()


def memory(**settings) -> MemoryConfig:
    sizes = {"layers": [1, 2], "num_keys": 8, "num_heads": 2, "top_k": 4, "placement": "beside"}
    return MemoryConfig(**(sizes | {"start": "zero_values"} | settings))


@pytest.mark.parametrize("family", [*DENSE_FAMILIES, *MIXTURE_FAMILIES])
def test_memory_is_inserted_learns_is_saved_and_loaded(family, tmp_path):
    plain(family).save_pretrained(tmp_path / "plain")
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    ids = torch.randint(3, 50, (2, 7))
    before = model(ids, use_cache=False).logits
    insert_memory_layers(model, memory(relevance_gate=True, qk_norm=True))
    assert torch.equal(model(ids, use_cache=False).logits, before)
    model(ids, labels=ids, use_cache=False).loss.backward()
    with torch.no_grad():
        for table in value_tables(model):
            assert table.weight.grad is not None
            assert table.weight.grad.any()
            table.weight.sub_(table.weight.grad.sign())
        learned = model(ids, use_cache=False).logits
        assert not torch.equal(learned, before)
        made = model.generate(ids, max_new_tokens=3, do_sample=False)
        uncached = model.generate(ids, max_new_tokens=3, do_sample=False, use_cache=False)
        assert torch.equal(made, uncached)
        model.save_pretrained(tmp_path / "memory")
        loaded = load_memory_lm(tmp_path / "memory").eval()
        assert torch.equal(loaded(ids, use_cache=False).logits, learned)


@pytest.mark.parametrize("family", MIXTURE_FAMILIES)
def test_a_mixture_that_was_never_on_disk_is_saved_and_loaded_too(family, tmp_path):
    model = insert_memory_layers(plain(family), memory())
    ids = torch.randint(3, 50, (1, 5))
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        expected = model(ids, use_cache=False).logits
        assert torch.equal(load_memory_lm(tmp_path)(ids, use_cache=False).logits, expected)


@pytest.mark.parametrize(
    ("family", "message"),
    [
        ("gpt_oss", r"GptOssForCausalLM: the FFN of block 1 \(GptOssMLP\) returns a tuple"),
        ("bloom", r"BloomForCausalLM: the FFN of block 1 \(BloomMLP\) takes more than the hidden"),
    ],
)
@pytest.mark.parametrize("placement", [{}, {"placement": "replace", "start": None}])
def test_ffns_that_memory_does_not_fit_are_refused_at_insertion(family, message, placement):
    model = plain(family)
    kind = type(model)
    with pytest.raises(ValueError, match=message):
        insert_memory_layers(model, memory(**placement))
    assert type(model) is kind  # nothing was changed
    assert value_tables(model) == []


def test_the_check_leaves_mode_and_random_numbers_as_they_are():
    model = plain("gpt2").train()  # whose dropout draws numbers
    state = torch.random.get_rng_state()
    refuse_other_ffns(model, [0, 2])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(module.training for module in model.modules())
    assert not any(module._forward_hooks for module in model.modules())
