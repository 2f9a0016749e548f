import pytest
import torch

from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.lit_modules.commune.debate import Debate, end_mask, reply_tensors
from triptych.lit_modules.commune.thought_evaluation import ThoughtEvaluation
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents_config import AgentsConfig, build_agents

TASK = PooledEvidence(num_agents=3, num_train=6, num_val=2)


@pytest.fixture(scope="module")
def debate() -> Debate:
    torch.manual_seed(0)
    base = BaseLMConfig(hidden_size=16, num_layers=2, num_heads=2, max_position_embeddings=64)
    agents = build_agents(AgentsConfig([base], num_agents=3), len(TASK.tokenizer))
    agents.give_tokenizer(TASK.tokenizer)
    return Debate(agents, TASK)


def test_replies_are_kept_up_to_their_first_end_token(debate):
    agent = debate.agents[0]
    end = TASK.tokenizer.eos_token_id
    ids = torch.tensor([[9, end, 7, end], [9, 8, 7, 6]])
    assert end_mask(ids, agent).tolist() == [[True, True, False, False], [True] * 4]
    tensors, mask = reply_tensors(agent, ["3", "4 4"])
    assert tensors.shape == (2, 3)
    assert mask.sum(1).tolist() == [2, 3]
    assert [agent.decode(row[None])[0] for row in tensors] == ["3", "4 4"]


def test_a_reply_is_right_for_its_own_agent(debate):
    questions = TASK.questions("train")
    right = [[question.answers[agent] for question in questions] for agent in range(3)]
    assert debate.correct(questions, right) == (18, 18)
    wrong = [["n1"] * 6, *right[1:]]
    assert debate.correct(questions, wrong) == (12, 18)


def test_states_of_later_rounds_have_read_the_prefix(debate):
    questions = TASK.questions("val")
    alone = debate.states(questions, StateConfig())
    prefixes = [torch.randn(2, 1, 16) for _ in range(3)]
    told = debate.states(questions, StateConfig(), prefixes)
    assert alone.shape == told.shape == (2, 48)
    assert not torch.allclose(alone, told)
    prefixes[1] = prefixes[1] + 1
    other = debate.states(questions, StateConfig(), prefixes)
    assert torch.equal(other[:, :16], told[:, :16])
    assert not torch.allclose(other[:, 16:32], told[:, 16:32])


def test_majority_and_consensus(debate):
    evaluation = ThoughtEvaluation(None, debate, 2, False, [])
    replies = [["1", "n0", "2"], ["1", "3", "3"], ["2", "3", "?"]]
    # most say 1; two of those that say anything say 3; among equals the first agent's
    assert evaluation.majority(replies) == [["1", "3", "2"]] * 3
    questions = TASK.questions("train")[:3]
    evaluation.count("x", questions, [["1", "2", "?"]] * 3)
    assert evaluation.agreed["x"] == 2
