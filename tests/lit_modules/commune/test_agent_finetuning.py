import pytest
import torch

from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.lit_modules.commune.agent_finetuning import (
    AgentFinetuning,
    debate_answers,
    own_copies,
)
from triptych.lit_modules.commune.debate import SILENCE, Debate
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agents_config import AgentsConfig, build_agents

TASK = PooledEvidence(num_agents=3, num_train=4, num_val=2)


@pytest.fixture(scope="module")
def agents():
    torch.manual_seed(0)
    base = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=64)
    team = build_agents(AgentsConfig([base], num_agents=3), len(TASK.tokenizer))
    team.give_tokenizer(TASK.tokenizer)
    return team


class Scripted(Debate):
    """Agents that say 1, 2, 2 alone, and 2, 2, 3 once they have heard anything."""

    def replies(self, questions, messages=SILENCE, prefixes=None):
        said = ["1", "2", "2"] if messages == SILENCE else ["2", "2", "3"]
        return [[reply] * len(questions) for reply in said]


@pytest.fixture
def hold(agents, tmp_path, monkeypatch):
    """Holds a debate on one question, without a trainer that would know the task."""
    agents.save_pretrained(tmp_path)
    monkeypatch.setattr(AgentFinetuning, "task", TASK)

    def run(consensus):
        module = AgentFinetuning(str(tmp_path), consensus=consensus)
        module.debate, module.samples = Scripted(module.model, TASK), [[], [], []]
        module._hold_debates(TASK.questions("train")[:1])
        return module.samples

    return run


def told(agent):
    question = TASK.questions("train")[0]
    heard = TASK.messages([question], [], agent)
    alone = TASK.encode(TASK.tokenizer, [question], agent)[0]
    return alone, TASK.encode(TASK.tokenizer, [question], agent, heard)[0]


def test_replies_that_the_majority_upholds_are_learned(hold):
    # most end with 2: agent 0 said it at last, agent 1 always, agent 2 at first
    samples = hold("majority")
    alone, heard = zip(*map(told, range(3)), strict=True)
    assert samples == [[(heard[0], "2")], [(alone[1], "2"), (heard[1], "2")], [(alone[2], "2")]]


def test_an_agent_may_learn_to_say_at_once_what_it_said_at_last(hold):
    samples = hold("own")
    alone, heard = zip(*map(told, range(3)), strict=True)
    last = ["2", "2", "3"]
    assert samples == [[(alone[k], last[k]), (heard[k], last[k])] for k in range(3)]


def test_what_a_debate_came_to(agents):
    debate = Debate(agents, TASK)
    replies = [["1", "1", "n0", "4"], ["1", "2", "n1", "n2"], ["3", "3", "=", "n2"]]
    assert debate_answers(debate, replies) == ["1", None, None, "4"]


def test_every_agent_becomes_a_model_of_its_own(agents):
    copies = own_copies(agents)
    with torch.no_grad():
        copies[0].embedding_weight.add_(1)
    assert not torch.equal(copies[0].embedding_weight, copies[1].embedding_weight)
    assert torch.equal(copies[1].embedding_weight, agents[0].embedding_weight)
    assert all(parameter.requires_grad for parameter in copies.parameters())


def test_one_source_of_agents_is_needed(tmp_path):
    with pytest.raises(ValueError, match="give one of them"):
        AgentFinetuning()
    with pytest.raises(ValueError, match="at least 2"):
        AgentFinetuning(str(tmp_path), rounds=1)


def test_agents_of_bfloat16_learn_in_float32():
    base = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=64)
    team = build_agents(AgentsConfig([base], num_agents=2), len(TASK.tokenizer))
    team.give_tokenizer(TASK.tokenizer)
    team[0].model.bfloat16()
    copies = own_copies(team)
    assert {parameter.dtype for parameter in copies.parameters()} == {torch.float32}
    optimizer = torch.optim.AdamW(copies[0].parameters(), 1e-5)
    before = copies[0].model.model.layers[0].mlp.up_proj.weight.detach().clone()
    copies[0].reply_logits(*copies[0].pad([[2, 3]]), torch.tensor([[4, 1]])).sum().backward()
    optimizer.step()
    after = copies[0].model.model.layers[0].mlp.up_proj.weight
    # in bfloat16 a step of 1e-5 leaves a weight above .01 what it was
    large = before.abs() > 0.01
    assert (after != before)[large].float().mean() > 0.9
    assert (after.bfloat16() != before.bfloat16())[large].float().mean() < 0.1
