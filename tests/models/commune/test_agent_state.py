"""The choice of the hidden state."""

import pytest
import torch

from triptych.models.commune.agent_state import StateConfig, pool_states


def test_pooling_leaves_padding_out():
    hidden = torch.tensor([[[9.0], [2.0], [4.0]]])
    mask = torch.tensor([[False, True, True]])
    assert pool_states(hidden, mask, StateConfig(pool="mean")).item() == 3
    assert pool_states(hidden, mask, StateConfig()).item() == 4


@pytest.mark.parametrize(
    ("settings", "message"), [({"depth": 0}, "state.depth"), ({"pool": "first"}, "state.pool")]
)
def test_what_cannot_be_is_said(settings, message):
    with pytest.raises(ValueError, match=message):
        StateConfig(**settings)
