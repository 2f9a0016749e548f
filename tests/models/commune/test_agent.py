"""One agent: prompts, prefixes, states, replies."""

import pytest
import torch

from tests.models.commune.tiny_agents import tiny_agents
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents


@pytest.fixture(scope="module")
def agents() -> Agents:
    return tiny_agents()


@pytest.mark.parametrize("number", range(3))
def test_padding_changes_no_state_with_or_without_a_prefix(agents, number):
    agent, config = agents[number], StateConfig()
    short, long = [2, 3], [4, 5, 6, 7]
    prefix = torch.randn(2, 2, agent.width)
    for before in (None, prefix):
        both = agent.states(*agent.pad([short, long]), config, before)
        for row, prompt in enumerate([short, long]):
            own = None if before is None else before[row : row + 1]
            alone = agent.states(*agent.pad([prompt]), config, own)
            torch.testing.assert_close(both[row], alone[0], rtol=1e-4, atol=1e-5)


def test_the_state_is_the_layer_at_two_thirds_of_the_depth(agents):
    agent = agents[0]
    ids, mask = agent.pad([[2, 3, 4]])
    seen = []
    handle = agent.model.model.layers[1].register_forward_hook(
        lambda _module, _inputs, output: seen.append(output)
    )
    state = agent.states(ids, mask, StateConfig())
    handle.remove()
    hidden = seen[0][0] if isinstance(seen[0], tuple) else seen[0]
    assert torch.equal(state[0], hidden.reshape(1, 3, 16)[0, -1])


@pytest.mark.parametrize("number", range(3))
def test_reply_logits_are_the_models_own(agents, number):
    agent = agents[number]
    prompt, reply = [2, 3, 4], [5, 6, 1]
    logits = agent.reply_logits(*agent.pad([prompt]), torch.tensor([reply]))
    whole = agent.model(torch.tensor([prompt + reply])).logits[:, 2:5]
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    both = agent.reply_logits_and_states(*agent.pad([prompt]), torch.tensor([reply]), StateConfig())
    assert torch.equal(both[0], logits)
    alone = agent.states(*agent.pad([prompt]), StateConfig())
    torch.testing.assert_close(both[1], alone, rtol=1e-4, atol=1e-5)


def test_embeddings_of_tokens_as_a_prefix_are_those_tokens(agents):
    agent = agents[0]
    ids, mask = agent.pad([[2, 3], [4, 5]])
    prefix = agent.embed(torch.tensor([[6, 7], [8, 9]]))
    told = agent.generate(ids, mask, 4, prefix)
    read = agent.generate(*agent.pad([[6, 7, 2, 3], [8, 9, 4, 5]]), 4)
    assert torch.equal(told, read)
    states = agent.states(ids, mask, StateConfig(), prefix)
    same = agent.states(*agent.pad([[6, 7, 2, 3], [8, 9, 4, 5]]), StateConfig())
    torch.testing.assert_close(states, same)


def test_gradients_reach_the_prefix_and_nothing_else(agents):
    agent = agents[0]
    prefix = torch.randn(1, 2, 16, requires_grad=True)
    agent.reply_logits(*agent.pad([[2, 3]]), torch.tensor([[4, 1]]), prefix).sum().backward()
    assert prefix.grad is not None
    assert prefix.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in agent.parameters())


def test_inputs_that_do_not_fit_are_refused(agents):
    with pytest.raises(ValueError, match=r"\[1\] have no tokens"):
        agents[0].pad([[2], []])
    with pytest.raises(ValueError, match="prefixes of this agent's adapter"):
        agents[0].states(*agents[0].pad([[2]]), StateConfig(), torch.zeros(1, 1, 24))
