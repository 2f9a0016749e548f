"""A measurement in the middle of training leaves no trace."""

import random

import numpy as np
import pytest
import torch
from torch import nn

from triptych.callbacks.remember.forgetting.undisturbed import undisturbed
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import memory_layers, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm


@pytest.fixture
def model():
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=16)
    return build_memory_lm(base, MemoryConfig(layers=[0, 1], num_keys=8, num_heads=2, top_k=4), 11)


IDS = torch.tensor([[1, 5, 2, 7]])


def test_modes_are_those_of_each_module(model):
    model.train()
    model.get_input_embeddings().eval()  # frozen by somebody
    modes = [module.training for module in model.modules()]
    with undisturbed(model):
        assert not any(module.training for module in model.modules())
    assert [module.training for module in model.modules()] == modes
    assert False in modes


def test_generators_go_on_where_they_were(model):
    def draw():
        return torch.rand(1).item(), np.random.rand(), random.random()

    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    expected = [draw(), draw()]
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)
    found = [draw()]
    with undisturbed(model):
        draw()
        torch.manual_seed(9)
    assert [*found, draw()] == expected


def test_records_of_slots_are_kept(model):
    first, second = memory_layers(model)
    first.recording = True
    model(input_ids=IDS)
    recorded = first.last_ids
    with undisturbed(model):
        model(input_ids=IDS.flip(1))
        assert first.last_ids is recorded
    assert (first.recording, second.recording) == (True, False)
    assert first.last_ids is recorded
    assert second.last_ids is None


def test_reads_that_wait_for_their_step_are_kept_and_none_are_added(model):
    (table,) = value_tables(model)
    table.set_gradient("selected_rows")
    model(input_ids=IDS, labels=IDS).loss.backward()
    reads, gradient = list(table.reads), table.row_gradient()
    with undisturbed(model):
        loss = model(input_ids=IDS.flip(1), labels=IDS).loss
        assert not loss.requires_grad
    assert [a is b for a, b in zip(table.reads, reads, strict=True)] == [True, True]
    assert torch.equal(table.row_gradient().grad_UD, gradient.grad_UD)


def test_an_error_inside_restores_as_well(model):
    model.train()
    with pytest.raises(KeyError), undisturbed(nn.ModuleList([model])):
        raise KeyError
    assert model.training
    assert torch.is_grad_enabled()
