"""A table of the papers' size trains on the CPU."""

import pytest
import torch

from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm


@pytest.mark.slow
def test_a_small_model_with_a_million_slots_trains_fifty_steps():
    base = BaseLMConfig(hidden_size=32, num_layers=2, num_heads=2)
    memory = MemoryConfig(
        layers=[1], num_keys=1024, num_heads=4, top_k=32, value_dim=16, qk_norm=True
    )
    model = build_memory_lm(base, memory, vocab_size=64)
    table = model.memory_values[0]
    assert table.weight.shape == (1_048_576, 16)
    before = table.weight.detach().clone()
    (layer,) = memory_layers(model)
    layer.recording = True
    ids = torch.randint(64, (4, 32))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.0)
    losses, was_read = [], torch.zeros(table.num_slots, dtype=torch.bool)
    for _ in range(50):
        loss = model(input_ids=ids, labels=ids).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        was_read[layer.last_ids.flatten()] = True
    assert losses[-1] < 0.5 * losses[0]
    changed = (table.weight.detach() != before).any(1)
    assert changed.any()
    assert not changed[~was_read].any()
