"""Replies are made once; states are read on where an interrupted reading ended."""

import json

import pytest
import torch

from tests.models.commune.tiny_agents import tiny_agents
from triptych.datamodules.commune.reply_store import ReplyStore, open_store
from triptych.datamodules.commune.state_cache import StateCache, build_states, write_rows
from triptych.models.commune.agent import Agent
from triptych.models.commune.agents import Agents

PROMPTS = [[2, 3], [4, 5, 6], [7]]


@pytest.fixture
def agents():
    first = tiny_agents()[0]
    return Agents([first, Agent(first.model, first.tokenizer, temperature=1.5, seed=3)])


def test_a_reply_is_made_once_also_by_a_later_process(agents, tmp_path, monkeypatch):
    asked = []
    reply = Agent.reply

    def counted(self, ids, mask, *rest):
        asked.append(len(ids))
        return reply(self, ids, mask, *rest)

    monkeypatch.setattr(Agent, "reply", counted)
    store = ReplyStore(agents, tmp_path)
    made = store.replies(0, PROMPTS, 5, 2)
    assert asked == [2, 1]
    sampled = store.replies(1, PROMPTS[:1], 5, 2)
    assert asked == [2, 1, 1]
    assert torch.equal(store.replies(0, PROMPTS[::-1], 5, 2), made.flip(0))
    (file,) = tmp_path.glob("*/*.jsonl")
    with file.open("a") as lines:
        lines.write('{"key": "cut sho')  # as a killed process leaves it
    later = ReplyStore(agents, tmp_path)
    assert torch.equal(later.replies(0, PROMPTS, 5, 2), made)
    assert torch.equal(later.replies(1, PROMPTS[:1], 5, 2), sampled)
    assert asked == [2, 1, 1]
    later.replies(0, PROMPTS, 6, 3)  # longer replies are others
    assert asked == [2, 1, 1, 3]


def test_agents_in_training_are_asked_anew():
    first = tiny_agents()[0]
    trained = Agents([first, Agent(first.model, first.tokenizer, frozen=False)])
    assert open_store(trained, None) is None
    with pytest.raises(ValueError, match="only frozen ones"):
        ReplyStore(trained)


def test_an_interrupted_reading_goes_on_and_damage_is_noticed(tmp_path):
    description = {"state_sizes": [2, 2], "num_questions": 5, "prompts": "train x"}
    seen: list[range] = []

    def read(rows: range) -> torch.Tensor:
        if len(seen) == 2:
            seen.append(range(0))
            raise KeyboardInterrupt
        seen.append(rows)
        return torch.tensor([[float(row)] * 4 for row in rows])

    def build(folder):
        write_rows(folder, description, read, 2, "states")

    folder = tmp_path / "states"
    with pytest.raises(KeyboardInterrupt):
        build_states(folder, build)
    assert not folder.exists()
    build_states(folder, build)
    assert [list(rows) for rows in seen] == [[0, 1], [2, 3], [], [4]]
    cache = StateCache(folder)
    assert cache.rows(range(5))[:, 0].tolist() == [0, 1, 2, 3, 4]
    assert cache.equal_agents() == [(0, 1)]
    content = bytearray((folder / "states.npy").read_bytes())
    content[-1] ^= 1
    (folder / "states.npy").write_bytes(content)
    with pytest.raises(ValueError, match="another checksum"):
        StateCache(folder)
    (folder / "states.npy").write_bytes(content[:40])
    with pytest.raises(ValueError, match="are damaged"):
        StateCache(folder)


def test_an_unfinished_reading_of_other_prompts_begins_anew(tmp_path):
    description = {"state_sizes": [1], "num_questions": 2, "prompts": "train x"}
    (tmp_path / "reading.json").write_text(json.dumps({"description": {}, "rows": 1}))
    write_rows(tmp_path, description, lambda rows: torch.ones(len(rows), 1), 1, "states")
    assert StateCache(tmp_path).rows([0, 1]).tolist() == [[1.0], [1.0]]
