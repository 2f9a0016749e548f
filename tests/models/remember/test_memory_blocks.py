"""Places of memory layers, and models without such places."""

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.remember.memory_blocks import decoder_blocks, memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import (
    FFNWithMemory,
    MemoryLayer,
    OutputProjection,
    SwiluGate,
)
from triptych.models.remember.memory_lm import insert_memory_layers


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
