"""Agents of one model that differ, sampled replies, and their states."""

import pytest
import torch

from tests.models.commune.tiny_agents import base, tiny_agents, word_tokenizer
from tests.models.tiny_chat_model import tiny_chat_folder
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agent import Agent
from triptych.models.commune.agent_state import StateConfig, pool_states
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents

PROMPTS = [[2, 3], [4, 5, 6, 7], [2, 3]]


@pytest.fixture(scope="module")
def sampler() -> Agent:
    agent = tiny_agents()[0]
    return Agent(agent.model, agent.tokenizer, temperature=2.0, seed=1)


def test_a_sampled_reply_follows_from_seed_and_prompt_and_from_nothing_else(sampler):
    replies = sampler.reply(*sampler.pad(PROMPTS), 12)
    assert torch.equal(replies[0], replies[2])
    torch.manual_seed(5)
    alone = sampler.without_end(sampler.reply(*sampler.pad(PROMPTS[1:2]), 12))
    assert alone == sampler.without_end(replies[1:2])
    other = Agent(sampler.model, sampler.tokenizer, temperature=2.0, seed=2)
    assert other.without_end(other.reply(*other.pad(PROMPTS), 12)) != sampler.without_end(replies)


def test_first_tokens_are_drawn_from_the_models_distribution(sampler):
    prompt = [2, 3, 4]
    with torch.no_grad():
        logits = sampler.model(torch.tensor([prompt])).logits[0, -1]
    wanted = (logits / sampler.temperature).softmax(0)
    counts = torch.zeros(len(wanted))
    for seed in range(40):
        # rows of one prompt share their noise, so each draw needs a seed of its own
        who = Agent(sampler.model, sampler.tokenizer, temperature=2.0, seed=seed)
        counts[who.reply(*who.pad([prompt]), 1)[0, 0]] += 1
    # a chi-square over the 10 tokens at p = 0.001
    expected = 40 * wanted
    assert float(((counts - expected) ** 2 / expected).sum()) < 27.9


def test_a_state_of_the_reply_is_that_of_its_last_token(sampler):
    config, ids = StateConfig(read="reply"), [[8, 9], [], [5]]
    batch = sampler.states(*sampler.pad(PROMPTS), config, None, ids)
    for row, (prompt, reply) in enumerate(zip(PROMPTS, ids, strict=True)):
        alone = sampler.states(*sampler.pad([[*prompt, *reply]]), StateConfig())
        torch.testing.assert_close(batch[row], alone[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="give the replies"):
        sampler.states(*sampler.pad(PROMPTS), config)
    prefix = torch.randn(3, 2, sampler.width)
    told = sampler.states(*sampler.pad(PROMPTS), config, prefix, ids)
    alone = sampler.states(*sampler.pad([[2, 3, 8, 9]]), StateConfig(), prefix[:1])
    torch.testing.assert_close(told[0], alone[0], rtol=1e-4, atol=1e-5)


def test_several_tokens_are_pooled_or_stand_side_by_side(sampler):
    sequence = StateConfig(pool="sequence", num_states=3)
    mean = StateConfig(pool="mean", num_states=3)
    assert [config.size(16) for config in (sequence, mean)] == [48, 16]
    both = sampler.states(*sampler.pad(PROMPTS), sequence)
    for row, prompt in enumerate(PROMPTS):
        alone = sampler.states(*sampler.pad([prompt]), sequence)
        torch.testing.assert_close(both[row], alone[0], rtol=1e-4, atol=1e-5)
    last = sampler.states(*sampler.pad(PROMPTS), StateConfig())
    torch.testing.assert_close(both[:, 32:], last)
    # a prompt of two tokens repeats its first one in a sequence, and not in a mean
    torch.testing.assert_close(both[0, :16], both[0, 16:32])
    pooled = sampler.states(*sampler.pad(PROMPTS), mean)
    torch.testing.assert_close(pooled[0], both[0, 16:].view(2, 16).mean(0))
    torch.testing.assert_close(pooled[1], both[1].view(3, 16).mean(0))
    whole = torch.randn(1, 2, 4), torch.ones(1, 2, dtype=torch.bool)
    torch.testing.assert_close(
        pool_states(*whole, StateConfig(pool="mean")),
        pool_states(*whole, StateConfig(pool="mean", num_states=9)),
    )


def test_agents_of_one_model_differ_by_role_and_come_back(tmp_path, smollm2):
    folder = tiny_chat_folder(tmp_path / "model", smollm2)
    config = AgentsConfig(
        [BaseLMConfig(pretrained=folder)],
        num_agents=3,
        system_prompts=["Be brief.", "Be brief.", None],
        roles=["You check.", None, None],
        temperatures=[0.0, 0.0, 0.7],
    )
    agents = build_agents(config)
    agents.save_pretrained(tmp_path / "export")
    assert not (tmp_path / "export" / "model_0").exists()
    for team in (agents, Agents.load(tmp_path / "export")):
        assert len({id(agent.model) for agent in team}) == 1
        asked = [{"role": "user", "content": "x"}]
        texts = [a.tokenizer.apply_chat_template(asked, tokenize=False) for a in team]
        assert "system\nBe brief.\n\nYou check.<|im_end|>" in texts[0]
        assert "system\nBe brief.<|im_end|>" in texts[1]
        assert "helpful AI assistant" in texts[2]
        assert [(a.temperature, a.seed) for a in team] == [(0.0, 0), (0.0, 0), (0.7, 2)]
        assert len(set(team.chat_fingerprints())) == 3
    greedy = build_agents(AgentsConfig([BaseLMConfig(pretrained=folder)], num_agents=2))
    assert greedy[0] is greedy[1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"roles": ["a"]}, "agents.roles has 1 roles for 2 agents"),
        ({"temperatures": [0.1]}, "agents.temperatures has 1"),
        ({"temperatures": -1.0}, "at least 0"),
        ({"system_prompt": "a", "system_prompts": ["a", "b"]}, "give one of them"),
        ({"roles": ["a", "b"]}, "models from sizes have none"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        AgentsConfig([base()], num_agents=2, **settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_states": 2}, "state.pool to mean or to sequence"),
        ({"pool": "sequence"}, "set state.num_states"),
        ({"read": "both"}, "choose prompt or reply"),
        ({"pool": "mean", "num_states": 0}, "at least 1"),
    ],
)
def test_states_that_cannot_be_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        StateConfig(**settings)


def test_a_prompt_without_room_for_a_reply_is_refused_and_a_reply_is_cut_to_its_room():
    config = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=8)
    agents = build_agents(AgentsConfig([config], num_agents=2), 10)
    agents.give_tokenizer(word_tokenizer())
    assert agents[0].reply(*agents[0].pad([[2] * 6, [3]]), 30).shape[1] <= 2
    with pytest.raises(ValueError, match="prompt 1 has 7 tokens, with 1 of a prefix"):
        agents[0].reply(*agents[0].pad([[3], [2] * 7]), 30, torch.randn(2, 1, 16))
