"""Groups of agents: shared models, saving and loading."""

import pytest

from tests.models.commune.tiny_agents import tiny_agents
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents


@pytest.fixture(scope="module")
def agents() -> Agents:
    return tiny_agents()


def test_agents_of_any_family_are_frozen_and_have_their_own_sizes(agents):
    assert agents.state_sizes == agents.widths == [16, 24, 16]
    agents.train()
    for agent in agents:
        agent.states(*agent.pad([[2]]), StateConfig())
        assert not agent.model.training
    assert not any(parameter.requires_grad for parameter in agents.parameters())


def test_agents_are_saved_once_each_and_come_back(tmp_path, agents):
    shared = Agents([agents[0], agents[1], agents[0]], ["ann", "bob", "cid"])
    shared.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model_*"))) == 2
    back = Agents.load(tmp_path)
    assert back.names == ["ann", "bob", "cid"]
    assert back[0] is back[2]
    assert back.fingerprints() == shared.fingerprints()
    assert back.fingerprints()[0] != back.fingerprints()[1]
