"""The study of the faiss index: which queries its recall is counted on."""

import pytest
import torch

from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.index.faiss_index import FaissSlotIndex
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.studies.remember.index_replacement import replace_index
from triptych.studies.remember.retention.retention_arms import World
from triptych.studies.slot_index import NUM_KEPT, _recall

WORLD = World(None, "report", 1, 2)


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    torch.manual_seed(0)
    cache = str(tmp_path_factory.mktemp("cache"))
    data = Facts(
        FactsConfig(num_facts=64), tokenizer=TokenizerConfig(vocab_size=400), cache_dir=cache
    )
    base = BaseLMConfig(hidden_size=16, num_layers=3, num_heads=2, max_position_embeddings=128)
    memory = MemoryConfig(layers=[0, 2], num_keys=16, num_heads=2, top_k=4)
    return replace_index(build_memory_lm(base, memory, data.vocab_size)).eval(), data.tokenizer


def test_an_exact_search_finds_all_and_each_layer_is_asked_once(lm, monkeypatch):
    asked = []
    own = FaissSlotIndex.recall_at_k

    def recall_at_k(self, query_BHD, num_kept):
        asked.append(query_BHD)
        return own(self, query_BHD, num_kept)

    monkeypatch.setattr(FaissSlotIndex, "recall_at_k", recall_at_k)
    assert _recall(*lm, WORLD) == 1.0  # so few slots are searched exactly
    first, last = asked
    assert first.shape == last.shape
    assert first.shape[1:] == (2, 8)  # two heads; key_dim is half the width
    assert len(first) > 64 * 4 * 5  # a token each of four wordings of 64 facts
    assert not torch.equal(first, last)


def test_what_is_not_found_is_missed(lm, monkeypatch):
    own = FaissSlotIndex.search

    def search(self, query_BHD, num_kept):
        found = own(self, query_BHD, num_kept)
        if num_kept == NUM_KEPT:  # not where the model reads
            found[..., : num_kept // 4] = -1
        return found

    monkeypatch.setattr(FaissSlotIndex, "search", search)
    assert _recall(*lm, WORLD) == pytest.approx(0.75)
