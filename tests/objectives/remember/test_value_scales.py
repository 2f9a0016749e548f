"""Value scales: one relative rate for models of different sizes, heads and gates."""

import math

import pytest
import torch

from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memories_beside, memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import rms
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.objectives.remember.value_scales import ValueScales

IDS = torch.arange(24).view(2, 12) % 19
TEXT = torch.arange(12) < torch.tensor([[12], [7]])


def build(**settings):
    sizes = {"layers": [1], "num_keys": 8, "num_heads": 3, "top_k": 4, "placement": "beside"}
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2)
    memory = MemoryConfig(**(sizes | {"start": "zero_values", "gated": False} | settings))
    return build_memory_lm(base, memory, vocab_size=19).eval()


@torch.no_grad()
def scales_of(model) -> list[float]:
    with ValueScales(model) as scales:
        model(input_ids=IDS, use_cache=False)
        scales.add(TEXT)
    return scales.compute()


@torch.no_grad()
def states(model) -> tuple[torch.Tensor, torch.Tensor]:
    """What enters the first memory's block, and what its FFN gives, for text alone."""
    kept = {}
    beside = memories_beside(model)[0]
    handle = beside.ffn.register_forward_hook(lambda _, given, out: kept.update(x=given[0], y=out))
    model(input_ids=IDS, use_cache=False)
    handle.remove()
    return kept["x"][TEXT], kept["y"][TEXT]


def test_without_gates_it_is_the_ffns_scale_per_head():
    model = build()
    _, ffn = states(model)
    expected = rms(ffn).log().mean().exp().item() / 3
    assert scales_of(model) == pytest.approx([expected], rel=1e-5)


@pytest.mark.parametrize("gates", [{"gated": True}, {"relevance_gate": True}])
def test_a_unit_is_what_moving_all_values_by_one_changes(gates):
    model = build(**gates)
    beside, table = memories_beside(model)[0], value_tables(model)[0]
    beside.memory_gate.data.fill_(0.3)
    hidden, ffn = states(model)
    (scale,) = scales_of(model)
    signs = torch.randint(0, 2, (16,), generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        table.weight.copy_(signs.expand_as(table.weight))
        change = beside(hidden) - ffn
    assert (rms(ffn).log() - rms(change).log()).mean().exp().item() == pytest.approx(
        scale, rel=1e-4
    )


def test_half_the_gate_doubles_it_and_so_does_half_of_the_heads():
    model = build()
    whole = scales_of(model)[0]
    memories_beside(model)[0].memory_gate.data.fill_(0.5)
    assert scales_of(model) == pytest.approx([2 * whole], rel=1e-5)


def test_layers_of_one_table_share_a_mean_and_own_tables_have_their_own():
    torch.manual_seed(0)
    own = scales_of(build(layers=[0, 1], share_values=False))
    torch.manual_seed(0)
    shared = scales_of(build(layers=[0, 1]))
    assert len(own) == 2
    assert shared == pytest.approx([math.sqrt(own[0] * own[1])], rel=1e-4)


def test_a_memory_in_the_ffns_place_is_measured_by_its_own_output():
    model = build(placement="replace", start=None)
    layer = memory_layers(model)[0]
    outputs = []
    handle = layer.register_forward_hook(lambda *passed: outputs.append(passed[2].detach()[TEXT]))
    (scale,) = scales_of(model)
    handle.remove()
    assert scale == pytest.approx(rms(outputs[0]).log().mean().exp().item() / 3, rel=1e-5)


def test_no_hook_is_left():
    model = build()
    scales_of(model)
    assert not any(module._forward_hooks for module in model.modules())
