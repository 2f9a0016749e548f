"""Hidden states of agents on reading their questions: computed once and cached on disk.

    cache folder
      states.npy     float32 (N, H), all agents' states side by side; memory-mapped
      states.json    description: models' weights, prompts, layer

Only the first round is cached: later ones depend on the adapter.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from triptych.datamodules.commune.debate_questions import DebateQuestions
from triptych.datamodules.commune.debate_task import DebateTask, Question, Split, one_per_question
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.disk_cache import build_once, default_cache_dir
from triptych.models.long_loop import with_progress

# Shapes: N questions, B batch, H dimensions of all agents' states together

STATES_FILE, DESCRIPTION_FILE = "states.npy", "states.json"
# Names of the description's entries in error messages.
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
        folder: A folder written by `write_states`.
        expected: The description that the states must have (`describe_states`); None: any.

    Raises:
        FileNotFoundError: if there are no states.
        ValueError: if the description differs; the message names the differences.
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
            listed = "; ".join(
                f"{_MEANING[key]}: {_short(found.get(key))} in the cache, {_short(expected[key])} "
                "now"
                for key in different
            )
            raise ValueError(
                f"the states in {folder} are of something else ({listed}): set "
                "data.init_args.states_dir to another folder, or to null to compute them anew"
            )
        shape = (expected["num_questions"], sum(expected["state_sizes"]))
        if self.values.shape != shape:
            raise ValueError(
                f"{folder / STATES_FILE} has shape {self.values.shape} and should have {shape}: it "
                "is damaged; delete the folder to compute it anew"
            )

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, rows: Sequence[int]) -> Tensor:
        """Return the states of some questions, (B, H)."""
        return torch.from_numpy(np.ascontiguousarray(self.values[list(rows)]))

    def batches(self, size: int = 4096) -> Iterator[Tensor]:
        """Yield all states in batches."""
        for start in range(0, len(self), size):
            yield torch.from_numpy(np.array(self.values[start : start + size]))


def describe_states(
    agents: Agents, state: StateConfig, task: DebateTask, split: Split, num_questions: int
) -> dict[str, Any]:
    """Describe everything that the states depend on."""
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
    """Compute the states of all agents on reading their first prompts, float32 (B, H)."""
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
    """Compute states and write them, in batches of questions."""
    description = describe_states(agents, state, task, split, len(questions))
    values = np.lib.format.open_memmap(
        folder / STATES_FILE,
        mode="w+",
        dtype=np.float32,
        shape=(len(questions), sum(agents.state_sizes)),
    )
    starts = range(0, len(questions), batch_size)
    title = f"batches of agents' states ({split})"
    for start in with_progress(starts, title, len(starts)):
        states_BH = read_states(agents, state, task, questions[start : start + batch_size])
        values[start : start + batch_size] = states_BH.cpu().numpy()
    values.flush()
    (folder / DESCRIPTION_FILE).write_text(json.dumps(description, indent=2) + "\n")


class AgentStates(DebateQuestions):
    """Batches of questions with the agents' states: `rows`, and `states` (B, H).

    The agents and the kind of state are those of the trained module: `agents` and `state`.

    Args:
        task: The task of the agents.
        state_batch_size: Questions per batch while states are computed.
        states_dir: Folder with `train` and `val` states computed before, which must match the
            agents and the task; null: states are computed and cached.
        cache_dir: Folder of cached states; null: `TRIPTYCH_CACHE` or ~/.cache/triptych.
        **kwargs: Further settings, those of `DebateQuestions`.
    """

    def __init__(
        self,
        task: DebateTask,
        state_batch_size: PositiveInt = 256,
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
        """Open the states; compute missing ones first.

        Raises:
            ValueError: if the module has no agents, their number is not the task's, or the states
                in `states_dir` do not match.
        """
        if self.caches:
            return
        trainer = self.trainer
        module = trainer.lightning_module if trainer else None
        agents, state = getattr(module, "agents", None), getattr(module, "state", None)
        if trainer is None or not (isinstance(agents, Agents) and isinstance(state, StateConfig)):
            raise ValueError(
                f"{type(module).__name__} has no agents whose states could be read: use "
                "triptych.lit_modules.commune.thought_autoencoder.ThoughtAutoencoder or "
                "triptych.lit_modules.commune.thought_adapter.ThoughtAdapter with this data"
            )
        check_number(agents, self.task)
        # Lightning moves models after `setup`, but an accelerator should compute the states.
        agents.to(trainer.strategy.root_device)
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
            rank_zero_info(f"computing {len(agents)} agents' states of {len(questions)} questions")

        def build(unfinished: Path) -> None:
            write_states(
                unfinished, agents, state, self.task, split, questions, self.state_batch_size
            )

        return StateCache(build_once(folder, build), expected)

    def train_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return training questions with their states."""
        return {"rows": torch.tensor(rows), "states": self.caches["train"].rows(rows)}

    def val_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return held-out questions with their states."""
        return {"rows": torch.tensor(rows), "states": self.caches["val"].rows(rows)}


def check_number(agents: Agents, task: DebateTask) -> None:
    """Refuse another number of agents than the task's.

    Raises:
        ValueError: if the numbers differ.
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
