"""The dense twin has the cost of the memory model."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.dense_twin import resized_ffn, twin_width
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm

FAMILIES = ["llama", "qwen2", "qwen3", "gpt2"]
TOKENS = 64


def build(family: str, **settings) -> PreTrainedModel:
    base = BaseLMConfig(family=family, hidden_size=128, num_layers=3, num_heads=4)
    sizes = {"layers": [0, 2], "num_keys": 32, "num_heads": 4, "top_k": 16, "value_dim": 96}
    return build_memory_lm(base, MemoryConfig(**(sizes | settings)), vocab_size=101)


def multiply_adds(model: PreTrainedModel) -> float:
    """Count the matrix products of torch, plus those of the memory's kernels."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        model(input_ids=torch.zeros(1, TOKENS, dtype=torch.int64), use_cache=False)
    total = counter.get_total_flops() / 2
    for layer in memory_layers(model):
        reads = layer.index.num_heads * layer.top_k
        total += TOKENS * reads * layer.values.value_dim
    return total


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("placement", ["replace", "beside"])
@pytest.mark.parametrize("gated", [True, False])
def test_as_many_multiply_adds_within_one_percent(family, placement, gated):
    memory = build(family, placement=placement, gated=gated)
    twin = build(family, placement=placement, gated=gated, dense_twin=True)
    assert memory_layers(twin) == []
    assert multiply_adds(twin) == pytest.approx(multiply_adds(memory), rel=0.01)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_formula_counts_what_torch_counts(family):
    memory = build(family)
    layer = memory_layers(memory)[0]
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad():
        layer(torch.randn(TOKENS, 128))
    config = MemoryConfig(**memory.config.memory)
    gather = 4 * 16 * 96
    assert config.multiply_adds(128) == counter.get_total_flops() / 2 / TOKENS + gather


def test_multiply_adds_by_hand():
    config = MemoryConfig(num_keys=10, num_heads=2, top_k=3, key_dim=4, value_dim=5)
    # query 8*8, scores 2*2*10*2, gather 2*3*5, gate 8*5, output 5*8
    assert config.multiply_adds(8) == 64 + 80 + 30 + 40 + 40


class GatedFFN(nn.Module):
    def __init__(self, hidden_size: int, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(hidden_size, width, bias=False)
        self.up_proj = nn.Linear(hidden_size, width, bias=False)
        self.down_proj = nn.Linear(width, hidden_size)
        self.intermediate_size = width


def test_width_by_hand():
    config = MemoryConfig(num_keys=10, num_heads=2, top_k=3, key_dim=4, value_dim=5)
    # 254 multiply-adds over three maps of 8 inputs or outputs: 10.6.
    assert twin_width(config, 8, GatedFFN(8, 20)) == 11
    config.placement = "beside"
    assert twin_width(config, 8, GatedFFN(8, 20)) == 31


def test_a_resized_ffn_keeps_its_kind():
    ffn = GatedFFN(8, 20).bfloat16()
    twin = resized_ffn(ffn, 8, 13, init_std=0.5)
    shapes = {name: tuple(p.shape) for name, p in twin.named_parameters()}
    assert shapes == {
        "gate_proj.weight": (13, 8),
        "up_proj.weight": (13, 8),
        "down_proj.weight": (8, 13),
        "down_proj.bias": (8,),
    }
    assert twin.intermediate_size == 13
    assert {p.dtype for p in twin.parameters()} == {torch.bfloat16}
    assert ffn.gate_proj.weight.shape == (20, 8)


def test_an_ffn_as_wide_as_the_hidden_size_is_refused():
    with pytest.raises(ValueError, match=r"dense twin of GatedFFN.*intermediate_size that differs"):
        resized_ffn(GatedFFN(8, 8), 8, 13, init_std=0.5)
