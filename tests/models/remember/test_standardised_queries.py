"""Queries of standardised states: what they compute, and how broadly slots are read."""

import pytest
import torch
import torch.nn.functional as F

from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, load_memory_lm
from triptych.models.remember.standardised_queries import standardise_queries
from triptych.objectives.remember.slot_scores import count_accesses

VOCABULARY = 97


def build(dtype=torch.float32):
    base = BaseLMConfig(hidden_size=32, num_layers=3, num_heads=2)
    memory = MemoryConfig(
        **{"layers": [0, 2], "num_keys": 16, "num_heads": 2, "top_k": 4, "placement": "beside"},
        **{"start": "zero_values", "qk_norm": True},
    )
    model = build_memory_lm(base, memory, VOCABULARY).to(dtype).eval()
    with torch.no_grad():  # as in pretrained models, whose states share a mean and large features
        for block in model.model.layers:
            block.post_attention_layernorm.weight[:3] = 20.0
        model.model.embed_tokens.weight[:, :3] += 0.05
    return model


def batch(seed: int = 0):
    ids = torch.randint(VOCABULARY, (6, 40), generator=torch.Generator().manual_seed(seed))
    segments = (torch.arange(40) < torch.tensor([[40], [31], [40], [8], [25], [40]])).long()
    return {
        "input_ids": ids * segments,
        "segment_ids": segments,
        "position_ids": torch.arange(40).expand(6, 40) * segments,
    }


@torch.no_grad()
def entering(model, text):
    """States that enter each memory layer, at positions of text."""
    kept = []
    handles = [
        layer.register_forward_pre_hook(lambda _, given: kept.append(given[0]))
        for layer in memory_layers(model)
    ]
    model(input_ids=text["input_ids"], use_cache=False)  # without padding on the left it is alike
    for handle in handles:
        handle.remove()
    return [states[text["segment_ids"] > 0] for states in kept]


@torch.no_grad()
def slots_read(model, text) -> list[float]:
    layers = memory_layers(model)
    for layer in layers:
        layer.recording = True
    model(input_ids=text["input_ids"], use_cache=False)
    keep = (text["segment_ids"] > 0)[..., None, None]
    counts = [count_accesses(layer.last_ids, keep, layer.index.num_slots) for layer in layers]
    return [(counts_S > 0).float().mean().item() for counts_S in counts]


def test_queries_are_those_of_standardised_states():
    model, text = build(), batch()
    before = [layer.query.weight.detach().clone() for layer in memory_layers(model)]
    states = entering(model, text)
    assert standardise_queries(model, [text]) == int(text["segment_ids"].sum())
    for layer, weight, x in zip(memory_layers(model), before, states, strict=True):
        normal = (x - x.mean(0)) / x.std(0, unbiased=False)
        expected = F.linear(normal, weight)
        torch.testing.assert_close(layer.query(x), expected, rtol=1e-3, atol=1e-3)


def test_slots_are_read_more_broadly_also_by_other_text():
    model, other = build(), batch(seed=1)
    plain = slots_read(model, other)
    standardise_queries(model, [batch()])
    for before, after in zip(plain, slots_read(model, other), strict=True):
        assert after > 1.5 * before
        assert after > 0.6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_stay_the_same_to_the_bit_and_the_queries_are_saved(dtype, tmp_path):
    model, text = build(dtype), batch()
    with torch.no_grad():
        before = model(input_ids=text["input_ids"], use_cache=False).logits
        standardise_queries(model, [text])
        assert torch.equal(model(input_ids=text["input_ids"], use_cache=False).logits, before)
    model.save_pretrained(tmp_path)
    loaded = load_memory_lm(tmp_path)
    for one, other in zip(memory_layers(model), memory_layers(loaded), strict=True):
        assert other.query.bias.any()
        assert torch.equal(one.query.bias, other.query.bias)


def test_several_batches_count_as_one_text():
    parts, whole, text = build(), build(), batch()
    parts.load_state_dict(whole.state_dict())
    halves = [{name: rows[part] for name, rows in text.items()} for part in (slice(2), slice(2, 6))]
    standardise_queries(parts, halves)
    standardise_queries(whole, [text])
    for one, other in zip(memory_layers(parts), memory_layers(whole), strict=True):
        torch.testing.assert_close(one.query.weight, other.query.weight)
        torch.testing.assert_close(one.query.bias, other.query.bias, rtol=1e-4, atol=1e-4)


def test_it_is_done_once_and_needs_memory_and_text():
    model = build()
    with pytest.raises(ValueError, match="0 tokens of text have no standard deviation"):
        standardise_queries(model, [])
    standardise_queries(model, [batch()])
    with pytest.raises(ValueError, match="were standardised or trained before"):
        standardise_queries(model, [batch()])
    plain = build_memory_lm(BaseLMConfig(hidden_size=16, num_heads=2), None, 9)
    with pytest.raises(ValueError, match="has no memory layers"):
        standardise_queries(plain, [batch()])
