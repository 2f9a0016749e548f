"""Hidden states of agents on reading their questions: computed once and cached on disk.

Only the first round is cached: later ones depend on the adapter. So are the agents' first replies
(`reply_store`).
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from triptych.datamodules.commune.debate_questions import DebateQuestions
from triptych.datamodules.commune.debate_task import DebateTask, Question, Split, one_per_question
from triptych.datamodules.commune.reply_store import ReplyStore, open_store
from triptych.datamodules.commune.state_cache import StateCache, build_states, write_rows
from triptych.models.commune.agent import Agent
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.disk_cache import default_cache_dir

# Shapes: N questions, B batch, H dimensions of all agents' states together

#: Token ids of each agent's prompts.
Prompts = Sequence[Sequence[list[int]]]


def first_prompts(agents: Agents, task: DebateTask, questions: Sequence[Question]) -> Prompts:
    """Encode the first prompts of every agent; agents that are one are encoded for each number.

    Raises:
        ValueError: if a prompt leaves no room for a reply.
    """
    prompts = []
    for number, agent in enumerate(agents):
        ids = task.encode(agent.tokenizer, questions, number)
        own = one_per_question(task, "encode", ids, questions)
        agent.require_room(own)
        prompts.append(own)
    return prompts


def describe_states(
    agents: Agents,
    state: StateConfig,
    task: DebateTask,
    split: Split,
    prompts: Prompts,
    precision: str = "32-true",
) -> dict[str, Any]:
    """Describe everything that the states depend on.

    Args:
        agents: The agents.
        state: The kind of state.
        task: Their task.
        split: Split of the questions.
        prompts: The first prompts of every agent (`first_prompts`).
        precision: That of the trainer, in which replies are made.
    """
    digest = hashlib.sha256(json.dumps(prompts, separators=(",", ":")).encode()).hexdigest()
    last = "" if state.num_states in (None, 1) else f" of the last {state.num_states} tokens"
    read = "prompt"
    if state.read == "reply":
        samplers = [(agent.temperature, agent.seed) for agent in agents]
        read = f"replies of {task.max_new_tokens} tokens at {samplers}, {precision}"
    return {
        "weights": agents.fingerprints(),
        "agents": agents.names,
        "state_sizes": [state.size(size) for size in agents.state_sizes],
        "layers": [state.layer(agent.num_layers) for agent in agents],
        "pool": state.pool + last,
        "read": read,
        "prompts": f"{split} {digest}",
        "num_questions": len(prompts[0]),
    }


@torch.no_grad()
def read_states(
    agents: Agents,
    state: StateConfig,
    prompts: Prompts,
    replies: Callable[[int, Sequence[list[int]]], Tensor],
    prefixes: Sequence[Tensor] | None = None,
) -> Tensor:
    """Compute the states of all agents after they read prompts, float32 (B, H).

    Agents that are one and read the same prompts are computed once.

    Args:
        agents: The agents.
        state: The kind of state.
        prompts: Token ids of each agent's prompts.
        replies: Returns the replies (B, T) of an agent to prompts, for states of replies.
        prefixes: Each agent's prefix of thoughts.

    Raises:
        ValueError: if a prompt leaves no room for a reply.
    """
    parts: list[Tensor] = []
    known: list[tuple[Agent, Sequence[list[int]], Tensor]] = []
    for number, agent in enumerate(agents):
        own, prefix = prompts[number], None if prefixes is None else prefixes[number]
        same = (part for who, read, part in known if who is agent and read == own)
        part = next(same, None) if prefix is None else None
        if part is None:
            agent.require_room(own, 0 if prefix is None else prefix.shape[1])
            said = agent.without_end(replies(number, own)) if state.read == "reply" else None
            part = agent.states(*agent.pad(own), state, prefix, said)
            known.append((agent, own, part))
        parts.append(part)
    return torch.cat(parts, 1)


class AgentStates(DebateQuestions):
    """Batches of questions with the agents' states: `rows`, and `states` (B, H).

    The agents and the kind of state are those of the trained module: `agents` and `state`. Their
    first replies are kept in `store`.

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
        self.store: ReplyStore | None = None

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
        self.store = open_store(agents, self.cache_dir)
        splits: dict[Split, list[Question]] = {
            "train": self.train_questions,
            "val": self.val_questions,
        }
        for split, questions in splits.items():
            self.caches[split] = self._open(agents, state, split, questions)
        if self.trainer.is_global_zero:
            _warn_of_equal(agents, self.caches["train"])

    def _open(
        self, agents: Agents, state: StateConfig, split: Split, questions: Sequence[Question]
    ) -> StateCache:
        assert self.trainer is not None
        trainer, prompts = self.trainer, first_prompts(agents, self.task, questions)
        expected = describe_states(agents, state, self.task, split, prompts, trainer.precision)
        if self.states_dir is not None:
            return StateCache(self.states_dir / split, expected)
        name = hashlib.sha256(json.dumps(expected, sort_keys=True).encode()).hexdigest()[:16]
        folder = self.cache_dir / "agent_states" / f"{split}-{name}"
        if not folder.is_dir():
            rank_zero_info(f"computing {len(agents)} agents' states of {len(questions)} questions")
        store, size = self.store or ReplyStore(agents), self.state_batch_size

        def reply(agent: int, own: Sequence[list[int]]) -> Tensor:
            # Replies have the trainer's precision, as in debates; Lightning calls `setup` outside
            # autocast.
            with trainer.precision_plugin.forward_context():
                return store.replies(agent, own, self.task.max_new_tokens, size)

        def read(rows: range) -> Tensor:
            return read_states(agents, state, [[own[i] for i in rows] for own in prompts], reply)

        def build(unfinished: Path) -> None:
            title = f"batches of agents' states ({split})"
            write_rows(unfinished, expected, read, size, title)

        return StateCache(build_states(folder, build), expected)

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


def _warn_of_equal(agents: Agents, cache: StateCache) -> None:
    """Warn of agents that cannot tell each other anything."""
    if pairs := cache.equal_agents():
        names = ", ".join(f"{agents.names[one]} and {agents.names[other]}" for one, other in pairs)
        rank_zero_warn(
            f"ALARM: the states of {names} are equal in all questions: they are one agent, whose "
            "thoughts, replies and votes tell nobody anything new. Give them different prompts or "
            "notes (the task), or different roles (agents.roles), system prompts "
            "(agents.system_prompts) or sampled replies (agents.temperatures, with state.read: "
            "reply)"
        )
