"""The paper's 1.3B model as configured, built on torch's meta device: sizes without weights."""

import resource
import sys

import pytest
import torch
import yaml
from transformers import PreTrainedModel

from tests.conftest import ROOT
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import decoder_blocks, memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import MemoryLayer
from triptych.models.remember.memory_lm import build_memory_lm

VOCABULARY = 32_000  # the paper does not say; Llama's


def peak_bytes() -> int:
    """Return the peak memory of this process."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@pytest.fixture(scope="module")
def built() -> tuple[PreTrainedModel, int]:
    """Build the model; returns it and the bytes by which the process's peak memory grew."""
    config = yaml.safe_load((ROOT / "configs/remember/pretrain_1b.yaml").read_text())
    settings = config["model"]["init_args"]
    base, memory = BaseLMConfig(**settings["base"]), MemoryConfig(**settings["memory"])
    before = peak_bytes()
    with torch.device("meta"):
        model = build_memory_lm(base, memory, VOCABULARY)
    return model, peak_bytes() - before


def test_no_memory_is_taken_for_its_weights(built):
    model, grown = built
    assert all(parameter.is_meta for parameter in model.parameters())
    assert grown < 256 << 20  # the weights would take 7 GB


def test_22_layers_with_memory_in_layer_12_alone(built):
    blocks = decoder_blocks(built[0])
    assert len(blocks) == 22
    assert [n for n, block in enumerate(blocks) if isinstance(block.mlp, MemoryLayer)] == [12]
    assert len(memory_layers(built[0])) == 1


def test_a_million_slots_of_width_1024_in_bfloat16(built):
    (table,) = value_tables(built[0])
    assert table.weight.shape == (1_048_576, 1024)
    assert table.weight.dtype == torch.bfloat16
    assert table.weight.numel() == 1_073_741_824  # 1.07B


def test_four_heads_read_32_slots_each(built):
    (layer,) = memory_layers(built[0])
    assert (layer.index.num_slots, layer.index.num_heads, layer.top_k) == (1_048_576, 4, 32)


def test_parameters_of_the_memory_layer(built):
    (layer,) = memory_layers(built[0])
    # Half keys 4 heads x 2 x 1024 x 512, queries 2048 -> 4 x 1024, gate and output 2048 <-> 1024.
    keys, queries = 4_194_304, 8_388_608 + 4_096
    gate, output = 2_097_152 + 1_024, 2_097_152 + 2_048
    assert sum(p.numel() for p in layer.parameters()) == keys + queries + gate + output


def test_about_1_3_billion_parameters_without_the_table(built):
    model = built[0]
    total = sum(parameter.numel() for parameter in model.parameters())
    without = total - sum(table.weight.numel() for table in value_tables(model))
    # Attention 4 x 2048^2 in 22 blocks, FFNs 3 x 2048 x 5632 in 21 of them, two norms of 2048 in
    # each and one at the end, embeddings in and out, and the memory layer of the test above.
    attention, ffns, norms = 22 * 16_777_216, 21 * 34_603_008, 45 * 2_048
    embeddings, memory = 2 * 65_536_000, 16_784_384
    # 1.113B and the embeddings: 0.131B here, 0.525B with the 128,256 tokens of Llama 3.
    assert without == attention + ffns + norms + embeddings + memory
    assert 1.2e9 < without < 1.4e9
