"""Tables of the papers' size: one trains on the CPU, the 1.3B model is built without weights."""

from pathlib import Path

import pytest
import torch
import yaml

from models.base_lm import BaseLMConfig
from models.memory_blocks import decoder_blocks, memory_layers
from models.memory_config import MemoryConfig
from models.memory_layer import MemoryLayer
from models.memory_lm import build_memory_lm

ROOT = Path(__file__).resolve().parents[2]


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


def test_the_1b_model_has_the_papers_sizes():
    config = yaml.safe_load((ROOT / "configs/remember/pretrain_1b.yaml").read_text())
    settings = config["model"]["init_args"]
    base, memory = BaseLMConfig(**settings["base"]), MemoryConfig(**settings["memory"])
    with torch.device("meta"):
        model = build_memory_lm(base, memory, vocab_size=32_000)
    assert all(parameter.is_meta for parameter in model.parameters())
    blocks = decoder_blocks(model)
    assert len(blocks) == 22
    assert [isinstance(block.mlp, MemoryLayer) for block in blocks].index(True) == 12
    (layer,) = memory_layers(model)
    assert (layer.index.num_slots, layer.index.num_heads, layer.top_k) == (1_048_576, 4, 32)

    values = sum(parameter.numel() for parameter in model.memory_values.parameters())
    assert values == 1_073_741_824  # 1,048,576 slots of width 1,024
    # Half keys 4 heads x 2 x 1024 x 512, queries 2048 -> 4 x 1024, gate and output 2048 <-> 1024.
    keys, queries = 4_194_304, 8_388_608 + 4_096
    gate, output = 2_097_152 + 1_024, 2_097_152 + 2_048
    norm = 4 if memory.qk_norm else 0  # a gain for each head
    assert sum(p.numel() for p in layer.parameters()) == keys + queries + gate + output + norm
    # 22 blocks without the values: 1.3B with the paper's FFNs and vocabulary.
    rest = sum(parameter.numel() for parameter in model.parameters()) - values
    assert 1.0e9 < rest < 1.5e9
