"""Places of memory layers, and models without such places."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.memory_blocks import (
    decoder_blocks,
    memories_beside,
    memory_layers,
    value_tables,
)
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import (
    FFNWithMemory,
    MemoryLayer,
    OutputProjection,
    SwiluGate,
)
from triptych.models.remember.memory_lm import build_memory_lm, insert_memory_layers


def insert(**settings):
    model = build_base_lm(BaseLMConfig(hidden_size=16, num_heads=2), vocab_size=20)
    sizes = {"num_keys": 8, "num_heads": 2, "top_k": 4}
    return insert_memory_layers(model, MemoryConfig(**(sizes | settings)))


def test_only_the_named_blocks_change():
    model = insert(layers=[3, 1])
    kinds = [type(block.mlp) for block in decoder_blocks(model)]
    assert [kind is MemoryLayer for kind in kinds] == [False, True, False, True]
    assert len(memory_layers(model)) == 2
    assert len(value_tables(model)) == 1


def test_beside_keeps_the_ffn():
    model = insert(layers=[1], placement="beside")
    block = decoder_blocks(model)[1].mlp
    assert isinstance(block, FFNWithMemory)
    assert [name for name, _ in block.named_children()] == ["ffn", "memory"]


def test_gates():
    assert isinstance(memory_layers(insert())[0].gate, SwiluGate)
    assert memory_layers(insert(gated=False))[0].gate is None
    assert isinstance(memory_layers(insert(gated=False, value_dim=7))[0].gate, OutputProjection)


def test_memory_takes_the_models_precision_and_mode():
    model = build_base_lm(BaseLMConfig(hidden_size=16, num_heads=2), vocab_size=20)
    model = model.bfloat16().eval()
    insert_memory_layers(model, MemoryConfig(num_keys=8, top_k=4))
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert not any(module.training for module in model.modules())


def test_a_gate_beside_takes_the_models_precision_too():
    model = build_base_lm(BaseLMConfig(hidden_size=16, num_heads=2), vocab_size=20).bfloat16()
    config = MemoryConfig(num_keys=8, top_k=4, placement="beside", relevance_gate=True)
    insert_memory_layers(model, config)
    relevance = decoder_blocks(model)[1].mlp.relevance
    assert {p.dtype for p in relevance.parameters()} == {torch.bfloat16}
    assert model(input_ids=torch.zeros(1, 3, dtype=torch.int64)).logits.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("collections.OrderedDict", "is not a SlotIndex"),
        ("ProductKeyIndexes", "cannot be found"),
        ("triptych.models.remember.index.product_keys.Nothing", "cannot be found"),
        ("models.nothing.ProductKeyIndex", "cannot be found"),
        ("triptych.models.remember.memory_layer.MemoryLayer", "is not a SlotIndex"),
    ],
)
def test_indices_that_do_not_exist(index, message):
    with pytest.raises(ValueError, match=message):
        insert(index=index)


def test_a_block_that_does_not_exist():
    with pytest.raises(ValueError, match=r"\[4\] do not exist: the model has blocks 0 to 3"):
        insert(layers=[0, 4])


def test_a_model_without_such_blocks():
    config = AutoConfig.for_model(
        "bloom", vocab_size=20, hidden_size=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=2
    )
    model = AutoModelForCausalLM.from_config(config)
    for block in model.transformer.h:
        block.feed_forward = block.mlp
        del block.mlp
    assert not any(isinstance(getattr(m, "mlp", None), nn.Module) for m in model.modules())
    with pytest.raises(ValueError, match=r"BloomForCausalLM has no list of 2 blocks with an `mlp`"):
        insert_memory_layers(model, MemoryConfig(num_keys=8, top_k=4))


IDS = torch.arange(12).view(2, 6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("options", [{}, {"gated": False}, {"relevance_gate": True}])
def test_zero_values_change_no_bit_and_learn_at_once(dtype, options):
    base = BaseLMConfig(hidden_size=16, num_heads=2)
    model = build_base_lm(base, vocab_size=20).to(dtype).eval()
    before = model(input_ids=IDS).logits
    memory = MemoryConfig(num_keys=8, top_k=4, placement="beside", start="zero_values", **options)
    insert_memory_layers(model, memory)
    assert torch.equal(model(input_ids=IDS).logits, before)
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert value_tables(model)[0].weight.grad.any()


def test_a_closed_gate_gives_the_values_no_gradient_and_is_the_default():
    model = insert(placement="beside")
    model(input_ids=IDS, labels=IDS).loss.backward()
    assert not value_tables(model)[0].weight.grad.any()
    assert value_tables(model)[0].weight.any()
    assert decoder_blocks(model)[1].mlp.memory_gate == 0


@pytest.mark.parametrize(
    ("memory", "is_zero"),
    [
        ({}, True),
        ({"start": "closed_gate"}, False),
        ({"placement": "replace"}, False),
    ],
)
def test_a_pretrained_model_gets_zero_values_by_default(memory, is_zero, tmp_path):
    build_base_lm(BaseLMConfig(hidden_size=16, num_heads=2), vocab_size=20).save_pretrained(
        tmp_path
    )
    settings = {"num_keys": 8, "top_k": 4, "placement": "beside"} | memory
    base = BaseLMConfig(pretrained=str(tmp_path))
    model = build_memory_lm(base, MemoryConfig(**settings), vocab_size=20)
    assert bool(value_tables(model)[0].weight.any()) is not is_zero
    assert (model.config.memory["start"] == "zero_values") is is_zero


def test_shares_are_kept_while_a_memory_records():
    model = insert(placement="beside", gated=False, num_keys=8).eval()
    beside = memories_beside(model)[0]
    model(input_ids=IDS)
    assert beside.last_shares_BT is None
    beside.memory.recording = True
    model(input_ids=IDS)
    assert torch.equal(beside.last_shares_BT, torch.zeros(2, 6))
    beside.memory_gate.data.fill_(0.5)
    seen = {}
    beside.ffn.register_forward_hook(lambda _, given, out: seen.update(x=given[0], ffn=out))
    model(input_ids=IDS)
    added = 0.5 * beside.memory(seen["x"])
    expected = added.square().mean(-1).sqrt() / seen["ffn"].square().mean(-1).sqrt()
    torch.testing.assert_close(beside.last_shares_BT, expected)
