"""What agents think on reading their questions: computed once, kept on disk, never mixed up.

    cache folder
      states.npy     float32 (N, H), all agents' states side by side; memory-mapped
      states.json    what they are of: models' weights, prompts, layer

Only the first round can be kept: later ones depend on the adapter.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor

from triptych.datamodules.commune.debate_questions import DebateQuestions
from triptych.datamodules.commune.debate_task import DebateTask, Question, Split, one_per_question
from triptych.datamodules.sources.disk_cache import build_once, default_cache_dir
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents

# Shapes: N questions, B batch, H dimensions of all agents' states together

STATES_FILE, DESCRIPTION_FILE = "states.npy", "states.json"
# What of a description is called what in a message.
_MEANING = {
    "weights": "the agents' weights",
    "agents": "the agents' names",
    "state_sizes": "the widths of their states",
    "layers": "the layers that states are read from",
    "pool": "how states are pooled (state.pool)",
    "prompts": "the prompts",
    "num_questions": "the number of questions",
}


class StateCache:
    """States on disk.

    Args:
        folder: Of `write_states`.
        expected: What they have to be of (`describe_states`); None: whatever they are.

    Raises:
        FileNotFoundError: if there are none.
        ValueError: if they are of something else: says what differs.
    """

    def __init__(self, folder: str | Path, expected: dict[str, Any] | None = None) -> None:
        folder = Path(folder)
        for name in (STATES_FILE, DESCRIPTION_FILE):
            if not (folder / name).is_file():
                raise FileNotFoundError(f"there is no file {name} in {folder}: no cached states")
        self.description: dict[str, Any] = json.loads((folder / DESCRIPTION_FILE).read_text())
        self.values = np.load(folder / STATES_FILE, mmap_mode="r", allow_pickle=False)
        if expected is not None:
            self._require(folder, expected)

    def _require(self, folder: Path, expected: dict[str, Any]) -> None:
        found = self.description
        if different := [key for key in expected if found.get(key) != expected[key]]:
            told = "; ".join(
                f"{_MEANING[key]}: {_short(found.get(key))} in the cache, {_short(expected[key])} "
                "now"
                for key in different
            )
            raise ValueError(
                f"the states in {folder} are of something else ({told}): point "
                "data.init_args.states_dir at another folder, or leave it out to have them "
                "computed anew"
            )
        shape = (expected["num_questions"], sum(expected["state_sizes"]))
        if self.values.shape != shape:
            raise ValueError(
                f"{folder / STATES_FILE} has shape {self.values.shape} and should have {shape}: it "
                "is damaged; delete the folder to have it computed anew"
            )

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """States of some questions, (B, H)."""
        return torch.from_numpy(np.ascontiguousarray(self.values[list(rows)]))

    def batches(self, size: int = 4096) -> Iterator[Tensor]:
        """All states, some at a time."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.array(self.values[start : start + size]))


def describe_states(
    agents: Agents, state: StateConfig, task: DebateTask, split: Split, num_questions: int
) -> dict[str, Any]:
    """Everything that states depend on."""
    return {
        "weights": agents.fingerprints(),
        "agents": agents.names,
        "state_sizes": agents.state_sizes,
        "layers": [state.layer(agent.num_layers) for agent in agents],
        "pool": state.pool,
        "prompts": f"{split} {task.fingerprint(split)}",
        "num_questions": num_questions,
    }


@torch.no_grad()
def read_states(
    agents: Agents, state: StateConfig, task: DebateTask, questions: Sequence[Question]
) -> Tensor:
    """States of all agents on reading their first prompts, float32 (B, H)."""
    parts = []
    for number, agent in enumerate(agents):
        prompts = task.encode(agent.tokenizer, questions, number)
        ids, mask = agent.pad(one_per_question(task, "encode", prompts, questions))
        parts.append(agent.states(ids, mask, state))
    return torch.cat(parts, 1)


def write_states(
    folder: Path,
    agents: Agents,
    state: StateConfig,
    task: DebateTask,
    split: Split,
    questions: Sequence[Question],
    batch_size: int,
) -> None:
    """Compute states and write them, some questions at a time."""
    description = describe_states(agents, state, task, split, len(questions))
    values = np.lib.format.open_memmap(
        folder / STATES_FILE,
        mode="w+",
        dtype=np.float32,
        shape=(len(questions), sum(agents.state_sizes)),
    )
    for start in range(0, len(questions), batch_size):
        states_BH = read_states(agents, state, task, questions[start : start + batch_size])
        values[start : start + batch_size] = states_BH.cpu().numpy()
    values.flush()
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")


class AgentStates(DebateQuestions):
    """Batches of questions with the agents' states: `rows`, and `states` (B, H).

    The agents, and which state is read, are those of the module that is trained: `agents` and
    `state`.

    Args:
        task: What agents are asked.
        state_batch_size: Questions at a time while states are computed.
        states_dir: Folder with `train` and `val` states that were computed before, which are
            refused if they are of anything else; null: computed and kept by fingerprint.
        cache_dir: Where they are kept; null: `TRIPTYCH_CACHE` or ~/.cache/triptych.
        **kwargs: Further settings, those of `DebateQuestions`.
    """

    def __init__(
        self,
        task: DebateTask,
        state_batch_size: int = 256,
        states_dir: str | None = None,
        cache_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(task, **kwargs)
        self.state_batch_size = state_batch_size
        self.states_dir = None if states_dir is None else Path(states_dir)
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self.caches: dict[str, StateCache] = {}

    def setup(self, stage: str) -> None:
        """Open the states, computed first where they are not there.

        Raises:
            ValueError: if the module has no agents, or their number is not the task's, or states in
                `states_dir` are of something else.
        """
        if self.caches:
            return
        module = self.trainer.lightning_module if self.trainer else None
        agents, state = getattr(module, "agents", None), getattr(module, "state", None)
        if not isinstance(agents, Agents) or not isinstance(state, StateConfig):
            raise ValueError(
                f"{type(module).__name__} has no agents whose states could be read: use "
                "triptych.lit_modules.commune.thought_autoencoder.ThoughtAutoencoder or "
                "triptych.lit_modules.commune.thought_adapter.ThoughtAdapter with this data"
            )
        check_number(agents, self.task)
        # Lightning moves models after `setup`; where there is an accelerator, it reads the states.
        agents.to(self.trainer.strategy.root_device)
        splits: dict[Split, list[Question]] = {
            "train": self.train_questions,
            "val": self.val_questions,
        }
        for split, questions in splits.items():
            self.caches[split] = self._open(agents, state, split, questions)

    def _open(
        self, agents: Agents, state: StateConfig, split: Split, questions: Sequence[Question]
    ) -> StateCache:
        expected = describe_states(agents, state, self.task, split, len(questions))
        if self.states_dir is not None:
            return StateCache(self.states_dir / split, expected)
        name = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.cache_dir / "agent_states" / f"{split}-{name}"
        if not folder.is_dir():
            rank_zero_info(f"reading {len(agents)} agents' states of {len(questions)} questions")

        def build(unfinished: Path) -> None:
            write_states(
                unfinished, agents, state, self.task, split, questions, self.state_batch_size
            )

        return StateCache(build_once(folder, build), expected)

    def train_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Training questions with their states."""
        return {"rows": torch.tensor(rows), "states": self.caches["train"].rows(rows)}

    def val_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Held-out questions with their states."""
        return {"rows": torch.tensor(rows), "states": self.caches["val"].rows(rows)}


def check_number(agents: Agents, task: DebateTask) -> None:
    """Refuse agents of another number than the task's.

    Raises:
        ValueError: naming both.
    """
    if task.num_agents is not None and task.num_agents != len(agents):
        raise ValueError(
            f"the task is for {task.num_agents} agents and there are {len(agents)}: set "
            f"data.init_args.task.init_args.num_agents to {len(agents)}, or use as many agents"
        )


def _short(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_short, value)) + "]"
    text = str(value)
    return text if len(text) <= 24 else f"{text[:16]}..."
