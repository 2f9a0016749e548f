from dataclasses import replace

import pytest
import torch

from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.lit_modules.commune.debate import Debate, end_mask, reply_tensors
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation
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


def test_caches_of_the_others_are_those_that_the_model_made(debate):
    questions = TASK.questions("val")
    replies, num_bytes = debate.replies_with_caches(questions)
    # 2 layers, keys and values, 16 numbers of 4 bytes
    assert debate.agents[0].cache_bytes == 2 * 2 * 16 * 4
    prompts = [debate.prompts(questions, k) for k in range(3)]
    assert num_bytes == 256 * 2 * sum(len(ids) for own in prompts for ids in own)
    model = debate.agents[0].model
    told = torch.tensor([[*prompts[1][0], *prompts[2][0]]])
    cache = model(told, use_cache=True).past_key_values
    next_id = model(torch.tensor([prompts[0][0]]), past_key_values=cache).logits[0, -1].argmax()
    ids = debate.store.replies(0, [[*told[0].tolist(), *prompts[0][0]]], 2, 1)
    assert int(ids[0, 0]) == int(next_id)
    assert replies[0][0] == debate.agents[0].decode(ids)[0]


def test_agents_of_different_models_have_no_caches_for_each_other():
    base = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2)
    agents = build_agents(AgentsConfig([base, base]), len(TASK.tokenizer))
    with pytest.raises(ValueError, match="different models"):
        Debate(agents, TASK).replies_with_caches([])


def test_agents_with_answers_of_their_own_have_no_majority(debate):
    evaluation = DebateEvaluation(debate, 2, [])
    evaluation.with_caches = True
    questions = [replace(q, answers=["1", "2", "1"]) for q in TASK.questions("val")]
    evaluation.debate_by_text(questions)
    values = evaluation.compute(lambda counts: counts)
    assert "val/majority/accuracy" not in values
    assert {"val/single/accuracy", "val/kv/accuracy", "val/kv/bytes_per_question"} <= values.keys()
    assert not any("majority" in name for name, _ in evaluation.table(values))
    evaluation.reset()
    evaluation.debate_by_text([replace(q, answers=q.answers[:1]) for q in questions])
    assert "val/majority/accuracy" in evaluation.compute(lambda counts: counts)
