"""Adapters, added, merged and switched off without a change of the model's class."""

import pytest
import torch

from triptych.models.base_lm import BaseLMConfig
from triptych.models.lora import LoRAConfig, add_lora, merge_lora, merged_state_dict, target_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm

IDS = torch.tensor([[1, 5, 7, 2, 9]])


def build(family: str = "llama", placement: str = "replace"):
    base = BaseLMConfig(
        family=family, hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=16
    )
    memory = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4, placement=placement)
    return build_memory_lm(base, memory, vocab_size=19)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(IDS).logits


def train_adapters(model) -> None:
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn_like(parameter) * 0.3


def adapted(family: str = "llama", **settings):
    model = build(family)
    add_lora(model, LoRAConfig(rank=3, alpha=6.0, **settings))
    train_adapters(model)
    return model


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_insertion_changes_no_logit_and_leaves_only_adapters_to_train(family):
    model = build(family, placement="beside")
    before = logits(model)
    kind = type(model)
    add_lora(model, LoRAConfig(rank=3))
    assert torch.equal(logits(model), before)
    assert type(model) is kind
    learns = {name for name, p in model.named_parameters() if p.requires_grad}
    assert learns == {name for name, _ in model.named_parameters() if ".lora_" in name}
    assert learns
    assert model.generate(IDS, max_new_tokens=2, do_sample=False, pad_token_id=0).shape == (1, 7)


def test_the_update_is_alpha_over_rank_times_the_product():
    """By hand, on a single layer: rank 1, alpha 4, so W + 4 b a^T."""
    model = build()
    add_lora(model, LoRAConfig(rank=1, alpha=4.0, targets="attention"))
    layer = model.model.layers[0].self_attn.q_proj
    base = layer.base_layer.weight.detach().clone()
    a, b = torch.zeros(1, 16), torch.zeros(16, 1)
    a[0, 3], b[5, 0] = 2.0, 0.5
    layer.lora_A["default"].weight.data, layer.lora_B["default"].weight.data = a, b
    expected = base.clone()
    expected[5, 3] += 4 * 0.5 * 2.0
    merge_lora(model)
    assert torch.equal(model.model.layers[0].self_attn.q_proj.weight, expected)


@pytest.mark.parametrize("alpha", [None, 1.5])
def test_alpha_is_twice_the_rank_unless_set(alpha):
    model = build()
    add_lora(model, LoRAConfig(rank=3, alpha=alpha))
    scaling = model.model.layers[0].self_attn.q_proj.scaling["default"]
    assert scaling == (2.0 if alpha is None else 0.5)


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_merged_logits_equal_those_of_the_adapters(family):
    torch.set_default_dtype(torch.float64)
    try:
        model = adapted(family)
        before, plain = logits(model), logits(build(family))
        merge_lora(model)
        torch.testing.assert_close(logits(model), before, rtol=0, atol=1e-12)
        assert (before - plain).abs().max() > 1e-2
    finally:
        torch.set_default_dtype(torch.float32)


def test_merged_model_is_a_plain_one_again():
    model = adapted()
    names = list(build().state_dict())
    promised = merged_state_dict(model)
    assert list(promised) == names
    with_adapters = {name: t.clone() for name, t in model.state_dict().items()}
    merge_lora(model)
    assert not hasattr(model, "peft_config")
    assert [type(m) for m in model.modules()] == [type(m) for m in build().modules()]
    merged = model.state_dict()
    assert list(merged) == names
    assert all(torch.equal(merged[name], promised[name]) for name in names)
    changed = {name for name in names if not torch.equal(merged[name], _base(with_adapters, name))}
    assert "model.layers.1.mlp.query.weight" in changed
    assert not changed & {
        "lm_head.weight",
        "memory_values.0.weight",
        "model.layers.1.mlp.index.keys",
    }


def _base(state: dict[str, torch.Tensor], name: str) -> torch.Tensor:
    stem, _, kind = name.rpartition(".")
    return state.get(name, state.get(f"{stem}.base_layer.{kind}"))


def test_a_model_with_adapters_is_saved_as_a_merged_one(tmp_path):
    model = adapted()
    model.save_pretrained(tmp_path, state_dict=merged_state_dict(model))
    saved = logits(load_memory_lm(tmp_path))
    torch.testing.assert_close(saved, logits(model), rtol=0, atol=1e-5)
    merge_lora(model)
    assert torch.equal(saved, logits(model))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_targets(family):
    model = build(family)
    attention = target_layers(model, "attention")
    everywhere = target_layers(model, "all_linear")
    assert len(attention) == {"llama": 2 * 4, "gpt2": 2 * 2}[family]
    assert set(attention) < set(everywhere)
    # One FFN is left beside the memory's query and its gate; the output layer is never adapted.
    ffn = {"llama": 3, "gpt2": 2}[family]
    assert len(everywhere) == len(attention) + ffn + 3
    assert not [name for name in everywhere if "head" in name]


def test_bad_settings_are_named():
    for settings, told in (
        ({"rank": 0}, r"lora\.rank is 0"),
        ({"alpha": 0.0}, r"lora\.alpha is 0\.0"),
        ({"dropout": 1.0}, r"lora\.dropout is 1\.0"),
    ):
        with pytest.raises(ValueError, match=told):
            LoRAConfig(**settings)
    with pytest.raises(ValueError, match="no linear layers"):
        target_layers(_Bare(), "all_linear")


class _Bare(torch.nn.Module):
    def get_output_embeddings(self) -> None:
        return None
