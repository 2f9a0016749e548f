import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from models.agents import Agent, Agents, AgentsConfig, StateConfig, build_agents, pool_states
from models.base_lm import BaseLMConfig


def word_tokenizer():
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def base(family="llama", width=16, layers=3):
    return BaseLMConfig(family=family, hidden_size=width, num_layers=layers, num_heads=2)


@pytest.fixture(scope="module")
def agents() -> Agents:
    torch.manual_seed(0)
    bases = [base(), base("gpt2", width=24), base("qwen3")]
    agents = build_agents(AgentsConfig(bases), 10)
    agents.give_tokenizer(word_tokenizer())
    return agents


def test_agents_of_any_family_are_frozen_and_have_their_own_sizes(agents):
    assert agents.state_sizes == agents.widths == [16, 24, 16]
    agents.train()
    for agent in agents:
        agent.states(*agent.pad([[2]]), StateConfig())
        assert not agent.model.training
    assert not any(parameter.requires_grad for parameter in agents.parameters())


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


def test_pooling_leaves_padding_out():
    hidden = torch.tensor([[[9.0], [2.0], [4.0]]])
    mask = torch.tensor([[False, True, True]])
    assert pool_states(hidden, mask, StateConfig(pool="mean")).item() == 3
    assert pool_states(hidden, mask, StateConfig()).item() == 4


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


def test_agents_are_saved_once_each_and_come_back(tmp_path, agents):
    shared = Agents([agents[0], agents[1], agents[0]], ["ann", "bob", "cid"])
    shared.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("model_*"))) == 2
    back = Agents.load(tmp_path)
    assert back.names == ["ann", "bob", "cid"]
    assert back[0] is back[2]
    assert back.fingerprints() == shared.fingerprints()
    assert back.fingerprints()[0] != back.fingerprints()[1]


def test_pretrained_agents_are_loaded_once(tmp_path, agents):
    agent: Agent = agents[0]
    agent.model.save_pretrained(tmp_path)
    agent.tokenizer.save_pretrained(tmp_path)
    pretrained = BaseLMConfig(pretrained=str(tmp_path))
    made = build_agents(AgentsConfig([pretrained, pretrained]))
    assert made[0] is made[1]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AgentsConfig([base()]), "1 agent"),
        (lambda: AgentsConfig([base()], num_agents=0), "0 agent"),
        (lambda: AgentsConfig([base(), base()], num_agents=3), "one each"),
        (lambda: AgentsConfig([base()], num_agents=2, names=["ann"]), "1 names"),
        (lambda: StateConfig(depth=0), "state.depth"),
        (lambda: StateConfig(pool="first"), "state.pool"),
        (lambda: build_agents(AgentsConfig([base()], num_agents=2)), "has no weights"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_inputs_that_do_not_fit_are_refused(agents):
    with pytest.raises(ValueError, match=r"\[1\] have no tokens"):
        agents[0].pad([[2], []])
    with pytest.raises(ValueError, match="adapter of this agent"):
        agents[0].states(*agents[0].pad([[2]]), StateConfig(), torch.zeros(1, 1, 24))
