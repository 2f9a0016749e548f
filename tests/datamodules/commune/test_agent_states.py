import json
from itertools import islice

import pytest
import torch

from triptych.datamodules.commune.agent_states import (
    AgentStates,
    check_number,
    describe_states,
    first_prompts,
    read_states,
)
from triptych.datamodules.commune.debate_questions import DebateQuestions
from triptych.datamodules.commune.pooled_evidence import PooledEvidence
from triptych.datamodules.commune.question_stream import ShuffledRows
from triptych.datamodules.commune.state_cache import StateCache, write_rows
from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents

STATE = StateConfig()


def task(**settings):
    return PooledEvidence(**({"num_agents": 2, "num_train": 10, "num_val": 4} | settings))


@pytest.fixture(scope="module")
def agents() -> Agents:
    torch.manual_seed(0)
    bases = [
        BaseLMConfig(hidden_size=width, num_layers=2, num_heads=2, max_position_embeddings=32)
        for width in (8, 12)
    ]
    made = build_agents(AgentsConfig(bases), len(task().tokenizer))
    made.give_tokenizer(task().tokenizer)
    return made


@pytest.fixture(scope="module")
def folder(agents, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    prompts = first_prompts(agents, task(), task().questions("train"))
    description = describe_states(agents, STATE, task(), "train", prompts)
    write_rows(folder, description, reader(agents, prompts), 4, "states")
    return folder


def reader(agents, prompts):
    return lambda rows: read_states(
        agents, STATE, [[own[row] for row in rows] for own in prompts], None
    )


def described(agents, state, the_task):
    prompts = first_prompts(agents, the_task, the_task.questions("train"))
    return describe_states(agents, state, the_task, "train", prompts)


def test_cached_states_are_those_of_the_agents(agents, folder):
    questions = task().questions("train")
    prompts = first_prompts(agents, task(), questions)
    cache = StateCache(folder, described(agents, STATE, task()))
    assert cache.values.shape == (10, 20)
    torch.testing.assert_close(cache.rows(range(10)), reader(agents, prompts)(range(10)))
    alone = agents[1].states(*agents[1].pad(task().encode(task().tokenizer, questions, 1)), STATE)
    torch.testing.assert_close(cache.rows([7, 3])[:, 8:], alone[[7, 3]])
    assert torch.equal(torch.cat(list(cache.batches(3))), cache.rows(range(10)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": StateConfig(depth=1.0)}, r"the layers .*\[1, 1\] in the cache, \[2, 2\] now"),
        ({"state": StateConfig(pool="mean")}, r"state.pool\): last in the cache, mean now"),
        ({"task": task(seed=1)}, r"\(the prompts: train"),
        ({"agents": None}, r"the agents' weights"),
    ],
)
def test_states_of_something_else_are_refused_with_the_difference(agents, folder, change, message):
    others = build_agents(
        AgentsConfig([BaseLMConfig(hidden_size=8, num_layers=2)], num_agents=2), 9
    )
    others.give_tokenizer(task().tokenizer)
    given = {"agents": agents, "state": STATE, "task": task()} | change
    expected = described(given["agents"] or others, given["state"], given["task"])
    with pytest.raises(ValueError, match=message):
        StateCache(folder, expected)


def test_a_damaged_cache_and_a_missing_one_are_refused(agents, folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no cached states"):
        StateCache(tmp_path)
    description = json.loads((folder / "states.json").read_text()) | {"num_questions": 11}
    for name in ("states.npy",):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    (tmp_path / "states.json").write_text(json.dumps(description))
    with pytest.raises(ValueError, match="is damaged"):
        StateCache(tmp_path, description)


def test_the_data_need_a_module_with_agents():
    with pytest.raises(ValueError, match="has no agents"):
        AgentStates(task()).setup("fit")


def test_agents_of_another_number_than_the_tasks_are_refused(agents):
    with pytest.raises(ValueError, match="for 3 agents and there are 2"):
        check_number(agents, task(num_agents=3))


def test_every_row_is_met_once_an_epoch_and_epochs_differ():
    rows = ShuffledRows(10, seed=3)
    assert sorted(rows.order(0)) == list(range(10))
    assert rows.order(1) != rows.order(0)
    read = [row for row, _ in islice(ShuffledRows(10, 3, rows_per_batch=4).read(), 16)]
    assert read == rows.order(0)[:8] + rows.order(1)[:8]


def test_fewer_questions_than_one_batch_of_all_processes_are_refused():
    with pytest.raises(ValueError, match="3 training questions fill no batch of 4"):
        ShuffledRows(3, seed=0, rows_per_batch=4)


def test_batches_hold_the_numbers_of_questions():
    data = DebateQuestions(task(), batch_size=4, eval_batch_size=3)
    assert [len(batch["rows"]) for batch in data.train_dataloader()] == [4, 4]
    assert torch.cat([batch["rows"] for batch in data.val_dataloader()]).tolist() == [0, 1, 2, 3]
    assert data.vocab_size == len(task().tokenizer)
    with pytest.raises(ValueError, match="batch_size"):
        DebateQuestions(task(), batch_size=0)
