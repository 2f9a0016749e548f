"""Replies of frozen agents, each made once: in memory, and on disk for pretrained agents.

    cache folder
      replies-<process>.jsonl   one line a reply: key, token ids

A reply without a prefix follows from the agent's weights, prompt, temperature and seed, so it is
never made twice: in training steps, references, validations, states of replies, and later runs.
Lines are appended as batches are done, so an interrupted run goes on where it ended.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from triptych.models.commune.agent import Agent
from triptych.models.commune.agents import Agents

# Shapes: B prompts, T reply positions


class ReplyStore:
    """Remembers what agents replied to prompts.

    Args:
        agents: The agents, all frozen.
        folder: Folder of the cache on disk; None: memory alone.

    Raises:
        ValueError: if an agent is not frozen, so that its replies change.
    """

    def __init__(self, agents: Agents, folder: Path | None = None) -> None:
        if not all(agent.frozen for agent in agents):
            raise ValueError("replies of agents that are trained change: only frozen ones are kept")
        self._agents = agents
        self._known: dict[str, list[int]] = {}
        self._file: Path | None = None
        self._names = [str(id(agent.model)) for agent in agents]
        if folder is not None:
            self._names = agents.fingerprints()
            name = hashlib.sha256("".join(sorted(set(self._names))).encode()).hexdigest()[:16]
            self._open(folder / name)

    def _open(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.jsonl")):
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                    self._known[row["key"]] = row["ids"]
                except (ValueError, KeyError, TypeError):
                    continue  # the line in which a process was stopped
        self._file = folder / f"replies-{os.getpid()}.jsonl"

    def replies(
        self, agent: int, prompts: Sequence[Sequence[int]], max_new_tokens: int, batch_size: int
    ) -> Tensor:
        """Return an agent's replies, int64 (B, T), padded after the end; make missing ones.

        Args:
            agent: Number of the agent.
            prompts: Token ids of each prompt.
            max_new_tokens: Longest reply.
            batch_size: Prompts that are answered at once.
        """
        who = self._agents[agent]
        keys = [self._key(agent, who, prompt, max_new_tokens) for prompt in prompts]
        missing = {k: p for k, p in zip(keys, prompts, strict=True) if k not in self._known}
        todo = list(missing.items())
        for start in range(0, len(todo), batch_size):
            self._make(who, todo[start : start + batch_size], max_new_tokens)
        rows = [torch.tensor(self._known[key], dtype=torch.int64) for key in keys]
        return pad_sequence(rows, True, who.pad_id).to(who.embedding_weight.device)

    def _make(
        self, who: Agent, todo: Sequence[tuple[str, Sequence[int]]], max_new_tokens: int
    ) -> None:
        made_BT = who.reply(*who.pad([prompt for _, prompt in todo]), max_new_tokens)
        ends, lines = set(who.end_ids), []
        for (key, _), ids in zip(todo, made_BT.tolist(), strict=True):
            stop = next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))
            self._known[key] = ids[:stop]
            lines.append(json.dumps({"key": key, "ids": ids[:stop]}) + "\n")
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write("".join(lines))

    def _key(self, agent: int, who: Agent, prompt: Sequence[int], max_new_tokens: int) -> str:
        device = who.embedding_weight.device.type
        autocast = torch.is_autocast_enabled(device) and str(torch.get_autocast_dtype(device))
        parts: list[Any] = [self._names[agent], who.temperature, who.seed, who.end_ids]
        parts += [max_new_tokens, device, autocast, list(prompt)]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def open_store(agents: Agents, cache_dir: Path | None) -> ReplyStore | None:
    """Open the replies of agents: on disk for pretrained ones; None for agents in training.

    Args:
        agents: The agents.
        cache_dir: Folder of caches; None: memory alone.
    """
    if not all(agent.frozen for agent in agents):
        return None
    on_disk = cache_dir is not None and all(agent.source is not None for agent in agents)
    return ReplyStore(agents, cache_dir / "agent_replies" if on_disk and cache_dir else None)
