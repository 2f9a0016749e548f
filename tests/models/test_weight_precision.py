"""Frozen matrices in bfloat16 change no bit under autocast; what learns is float32."""

import pytest
import torch

from tests.models.diversify.tiny_policies import prompt, tiny_model, tiny_tokenizer
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.lora import LoRAConfig, add_lora, merge_lora
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.trainable import choose_trainable
from triptych.models.weight_precision import narrow_frozen

PROMPTS = [prompt([3, 4, 5]), prompt([6])]


def as_from_bfloat16_files(model):
    for parameter in model.parameters():
        parameter.data = parameter.data.bfloat16().float()
    return model


def run(kind: str, trainable: str, frozen_dtype: str):
    model = as_from_bfloat16_files(tiny_model(kind))
    choose_trainable(model, trainable)
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    policy = CausalLMPolicy(model, 6, tiny_tokenizer(), frozen_dtype=frozen_dtype)
    policy.use_autocast("bf16-mixed", on_accelerator=False)
    with torch.autocast("cpu", torch.bfloat16):
        rollout = policy.sample(PROMPTS, 4, torch.Generator().manual_seed(0))
        reference_BT = policy.reference_token_log_prob(rollout)
        log_prob_BT = policy.token_log_prob(rollout)
    log_prob_BT.sum().backward()
    found = {"ids": rollout.token_ids_BT, "reference": reference_BT, "score": log_prob_BT.detach()}
    found |= {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return policy, rollout, found


CASES = [
    ("llama", "all"),
    ("llama", "lora"),
    ("gpt2", "all"),
    ("gpt2", "lora"),
    ("memory", "lora"),
    ("memory", "values"),
    ("memory", "memory"),
]


@pytest.mark.parametrize(("kind", "trainable"), CASES, ids=lambda value: value)
def test_samples_scores_and_gradients_are_the_same_to_the_bit(kind, trainable):
    _, _, exact = run(kind, trainable, "float32")
    policy, rollout, ours = run(kind, trainable, "bfloat16")
    assert exact.keys() == ours.keys()
    for name, value in exact.items():
        assert torch.equal(ours[name], value), name
    frozen = [*policy.model.parameters(), *(p for r in policy._reference for p in r.parameters())]
    narrow = [p for p in frozen if p.dtype == torch.bfloat16]
    # Deltas of slots know their model by its bytes, so its own matrices stay.
    assert (len(narrow) > 0) == (trainable == "all" or kind != "memory" or trainable == "memory")
    assert not any(p.requires_grad for p in narrow)
    # Outside of a trainer's autocast the policy computes as inside.
    assert torch.equal(policy.reference_token_log_prob(rollout), exact["reference"])


def test_a_matrix_that_would_lose_digits_stays_unless_it_is_a_copy():
    model = tiny_model("llama")
    model.requires_grad_(False)
    assert narrow_frozen(model, only_lossless=True) == 0
    assert narrow_frozen(model, only_lossless=False) == 2 * 7
    kept = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    assert kept == {n for n, _ in model.named_parameters() if "norm" in n or "embed" in n}


@pytest.mark.parametrize(
    ("precision", "on_accelerator", "frozen_dtype", "narrow"),
    [
        ("bf16-mixed", True, None, True),
        ("bf16-mixed", False, None, False),
        ("bf16-mixed", True, "float32", False),
        ("bf16-mixed", False, "bfloat16", True),
        ("32-true", True, None, False),
        ("bf16-true", True, None, False),
    ],
)
def test_the_precision_of_the_reference_follows_from_the_trainer(
    precision, on_accelerator, frozen_dtype, narrow
):
    policy = CausalLMPolicy(tiny_model("llama"), 4, frozen_dtype=frozen_dtype)
    policy.use_autocast(precision, on_accelerator)
    (reference,) = policy._reference
    assert any(p.dtype == torch.bfloat16 for p in reference.parameters()) == narrow
    assert all(p.dtype == torch.float32 for p in policy.model.parameters())


def test_bfloat16_without_autocast_is_refused():
    policy = CausalLMPolicy(tiny_model("llama"), 4, frozen_dtype="bfloat16")
    with pytest.raises(ValueError, match=r"precision is 32-true: set the precision to bf16-mixed"):
        policy.use_autocast("32-true", on_accelerator=True)


def test_an_update_finer_than_bfloat16_survives_the_export():
    model = as_from_bfloat16_files(tiny_model("llama"))
    add_lora(model, LoRAConfig(rank=2))
    policy = CausalLMPolicy(model, 4, frozen_dtype="bfloat16")
    policy.use_autocast("bf16-mixed", on_accelerator=False)
    layer = model.model.layers[0].self_attn.q_proj
    assert layer.base_layer.weight.dtype == torch.bfloat16
    torch.nn.init.constant_(layer.lora_B["default"].weight, 1e-6)
    before = layer.base_layer.weight.float()
    update = layer.get_delta_weight("default")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert torch.equal(policy.export_state_dict()[name], before + update)
    assert update.abs().max() < 1e-3
    merge_lora(model)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, before + update)


@pytest.fixture(scope="module")
def half_precision_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bfloat16")
    for kind in ("llama", "memory"):
        tiny_model(kind).bfloat16().save_pretrained(folder / kind)
        tiny_tokenizer().save_pretrained(folder / kind)
    return folder


@pytest.mark.parametrize(
    ("kind", "trainable"),
    [("llama", "all"), ("llama", "lora"), ("memory", "values"), ("memory", "memory")],
    ids=lambda value: value,
)
def test_what_learns_is_float32_whatever_the_files_hold(half_precision_folder, kind, trainable):
    config = CausalLMPolicyConfig(
        str(half_precision_folder / kind), trainable=trainable, max_new_tokens=4
    )
    policy = build_policy(config, 19)
    learns = [p for p in policy.model.parameters() if p.requires_grad]
    assert learns
    assert {p.dtype for p in learns} == {torch.float32}
    frozen = {p.dtype for p in policy.model.parameters() if not p.requires_grad}
    assert frozen <= {torch.bfloat16}
    rollout = policy.sample(PROMPTS, 2, torch.Generator().manual_seed(0))
    policy.token_log_prob(rollout).sum().backward()  # without autocast too
    assert all(p.grad.dtype == torch.float32 for p in learns if p.grad is not None)


def test_a_table_whose_config_names_bfloat16_keeps_it():
    model = tiny_model("memory")
    model.config.memory["value_dtype"] = "bfloat16"
    (table,) = value_tables(model)
    table.to(torch.bfloat16)
    choose_trainable(model, "values")
    assert table.weight.dtype == torch.bfloat16


def test_the_base_for_pretraining_learns_in_float32_too(half_precision_folder):
    from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining

    base = BaseLMConfig(pretrained=str(half_precision_folder / "llama"))
    assert build_base_lm(base, 19).dtype == torch.bfloat16
    made = MemoryPretraining(vocab_size=19, base=base)
    assert {p.dtype for p in made.model.parameters()} == {torch.float32}
