"""The retrofit study: its arithmetic by hand, and all of it at smoke size."""

import pytest
import torch
from torch import nn

from tests.conftest import ROOT
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_layer import FFNWithMemory
from triptych.models.remember.memory_lm import build_memory_lm, insert_memory_layers
from triptych.studies import retrofit
from triptych.studies.remember.retention.retention_ways import (
    NEW,
    OLD_DROP,
    STATEMENT,
    TEXT,
    TEXT_RISE,
)


def test_text_is_held_against_the_plain_model():
    before = [
        {"probe": "old", "metric": "exact_match", "value": 0.9},
        {"probe": "text", "metric": "perplexity", "value": 54.6},
        {"probe": "text", "metric": "nll_nats_per_token", "value": 4.0},
    ]
    learned = {NEW: 0.6, STATEMENT: 0.8, OLD_DROP: 3.0, TEXT: 4.04, TEXT_RISE: 1.0, "more": 1.0}
    numbers = retrofit.numbers_of_seed(before, learned)
    assert numbers[retrofit.PLAIN_TEXT] == 4.0
    assert numbers[retrofit.HEALED_TEXT] == pytest.approx(0.0, abs=1e-9)
    assert numbers[retrofit.LEARNED_TEXT] == pytest.approx(1.0)
    assert (numbers[NEW], numbers[STATEMENT], numbers[OLD_DROP]) == (0.6, 0.8, 3.0)


def test_a_memory_that_is_open_changes_logits(tmp_path, monkeypatch):
    torch.manual_seed(0)
    base = BaseLMConfig(hidden_size=32, num_layers=2, num_heads=2, max_position_embeddings=64)
    build_memory_lm(base, None, 128).save_pretrained(tmp_path)
    assert retrofit.changed_logits(tmp_path, 2, 8) == 0

    def insert_open(model, memory):
        insert_memory_layers(model, memory)
        for module in model.modules():
            if isinstance(module, FFNWithMemory):
                nn.init.ones_(module.memory_gate)
        return model

    monkeypatch.setattr(retrofit, "insert_memory_layers", insert_open)
    assert retrofit.changed_logits(tmp_path, 2, 8) > 1000


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_smoke_preset_on_embedded_data(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    results = retrofit.main(["--out", str(tmp_path), "--workers", "1"])
    numbers = results["arms"]["retrofit"]
    assert numbers[retrofit.CHANGED]["mean"] == 0
    assert numbers[retrofit.PLAIN_TEXT]["mean"] > 0
    assert len(results["checks"]) == 3
