"""The paper's 1.3B model, as `configs/remember/pretrain_1b.yaml` has it, on the meta device."""

import pytest
import torch
import yaml

from models.base_lm import BaseLMConfig
from models.memory_blocks import decoder_blocks, memory_layers, value_tables
from models.memory_config import MemoryConfig
from models.memory_layer import MemoryLayer
from models.memory_lm import build_memory_lm
from tests.conftest import ROOT

VOCABULARY = 128_256  # Llama 3's, which facebookresearch/memory trains with


@pytest.fixture(scope="module")
def model():
    config = yaml.safe_load((ROOT / "configs" / "remember" / "pretrain_1b.yaml").read_text())
    settings = config["model"]["init_args"]
    base, memory = BaseLMConfig(**settings["base"]), MemoryConfig(**settings["memory"])
    with torch.device("meta"):
        return build_memory_lm(base, memory, VOCABULARY)


def test_only_layer_12_of_22_has_a_memory(model):
    blocks = decoder_blocks(model)
    assert len(blocks) == 22
    assert [n for n, block in enumerate(blocks) if isinstance(block.mlp, MemoryLayer)] == [12]


def test_a_million_slots_read_by_4_heads_of_32(model):
    (table,), (layer,) = value_tables(model), memory_layers(model)
    assert table.weight.shape == (1_048_576, 1024)
    assert table.weight.dtype == torch.bfloat16
    assert (layer.index.num_heads, layer.top_k) == (4, 32)


def test_sizes_are_the_papers_and_nothing_is_allocated(model):
    (table,) = value_tables(model)
    assert all(parameter.is_meta for parameter in model.parameters())
    assert table.weight.numel() == 1_073_741_824
    others = sum(p.numel() for p in model.parameters()) - table.weight.numel()
    embeddings = 2 * VOCABULARY * 2048
    # 1.3B: the blocks alone hold 1.1B; with one or both embedding matrices it is 1.4B or 1.6B.
    assert 1.0e9 < others - embeddings < 1.3e9
    assert 1.3e9 < others < 1.7e9
