"""Memory settings: errors, sizes, plain types."""

import pytest
import torch

from triptych.models.remember.memory_config import MemoryConfig


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": []}, "memory.layers is empty: name at least one block"),
        ({"layers": [1, 1]}, r"memory.layers names a block twice: \[1, 1\]"),
        ({"num_keys": 0}, "memory.num_keys must be at least 1, got 0"),
        ({"num_heads": -1}, "memory.num_heads must be at least 1, got -1"),
        ({"top_k": 0}, "memory.top_k must be at least 1, got 0"),
        ({"value_dim": 0}, "memory.value_dim must be at least 1, got 0"),
        ({"key_dim": 0}, "memory.key_dim must be at least 1, got 0"),
        (
            {"num_keys": 16, "top_k": 32},
            "memory.top_k=32 is larger than memory.num_keys=16.*Lower top_k or raise num_keys",
        ),
        ({"key_dim": 7}, "memory.key_dim=7 must be even"),
        (
            {"faiss": {}},
            "memory.faiss is set, but memory.index is product keys: set memory.index to triptych",
        ),
        (
            {"index_args": {"keys": torch.ones(1)}},
            "memory.index_args must be numbers, words, lists .* type Tensor is not JSON",
        ),
        (
            {"relevance_gate": True},
            "memory.relevance_gate weighs a memory beside an FFN: set memory.placement to beside",
        ),
        (
            {"start": "zero_values"},
            "memory.start=zero_values is about a memory beside an FFN: set memory.placement to",
        ),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        MemoryConfig(**settings)


def test_resolving_fills_in_sizes():
    memory = MemoryConfig(layers=[1], num_keys=1024).resolved(2048, 22)
    assert (memory.key_dim, memory.value_dim, memory.num_slots) == (1024, 2048, 1_048_576)
    own = MemoryConfig(layers=[1], key_dim=6, value_dim=5).resolved(2048, 22)
    assert own.sizes() == (6, 5)


@pytest.mark.parametrize("layers", [[22], [-1, 3]])
def test_blocks_that_do_not_exist(layers):
    with pytest.raises(ValueError, match=r"do not exist: the model has blocks 0 to 21"):
        MemoryConfig(layers=layers).resolved(2048, 22)


def test_an_odd_key_width_that_follows_from_the_model():
    with pytest.raises(ValueError, match=r"would be 15 \(half of hidden_size=30\).*even number"):
        MemoryConfig().resolved(30, 4)


def test_round_trip_through_plain_types():
    memory = MemoryConfig(layers=[0, 2], value_dtype="bfloat16")
    assert MemoryConfig(**memory.to_dict()) == memory
    assert memory.dtype() is torch.bfloat16
    assert MemoryConfig().dtype() is None


def test_settings_of_models_saved_before_an_option_existed():
    old = MemoryConfig(layers=[0, 2], placement="beside").to_dict()
    for name in ("index_args", "relevance_gate", "start"):
        del old[name]
    memory = MemoryConfig(**old)
    assert memory.start is None  # a gate that starts closed
    assert (memory.index_args, memory.relevance_gate) == ({}, False)


def test_a_relevance_gate_costs_one_multiply_add_for_each_hidden_unit():
    plain = MemoryConfig(placement="beside").resolved(64, 4)
    gated = MemoryConfig(placement="beside", relevance_gate=True).resolved(64, 4)
    assert gated.multiply_adds(64) - plain.multiply_adds(64) == 64
