"""A group of agents, saved to a folder and loaded from it.

Agents may differ in size and family, and several may share one model.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from triptych.models.chat_form import ChatForm
from triptych.models.commune.agent import Agent, load_agent
from triptych.models.host.checked_folder import check_folder, read_settings, refresh_checksums
from triptych.models.progress_bars import no_progress_bars

AGENTS_FILE = "agents.json"
_OWN = "model_"
# Words, numbers, scripts, spaces and a mark: tokenizers differ in some of them.
_PROBE = "The 3 quick brown foxes  jumped over 1,024.50 lazy dogs; Zürich, 東京 \n\tint x=7; n3 + ?"


class Agents(nn.Module):
    """A group of agents, some of which may share one model.

    Args:
        agents: The agents.
        names: Their names; null: agent 0, agent 1, ...

    Raises:
        ValueError: if there are fewer than two agents.
    """

    def __init__(self, agents: Sequence[Agent], names: Sequence[str] | None = None) -> None:
        super().__init__()
        if len(agents) < 2:
            raise ValueError(f"there are {len(agents)} agents: an exchange needs at least two")
        self.agents = nn.ModuleList(agents)
        self.names = list(names) if names else [f"agent {k}" for k in range(len(agents))]

    def __len__(self) -> int:
        return len(self.agents)

    def __getitem__(self, number: int) -> Agent:
        agent = self.agents[number]
        assert isinstance(agent, Agent)
        return agent

    def __iter__(self) -> Iterator[Agent]:
        return (self[number] for number in range(len(self)))

    @property
    def state_sizes(self) -> list[int]:
        """Width of each agent's state."""
        return [agent.state_size for agent in self]

    @property
    def widths(self) -> list[int]:
        """Width of each agent's embeddings."""
        return [agent.width for agent in self]

    def give_tokenizer(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Set the tokenizer of every agent that has none."""
        for agent in self:
            if agent.own_tokenizer is None:
                agent.own_tokenizer = tokenizer

    def fingerprints(self) -> list[str]:
        """Hash each agent's weights."""
        known: dict[int, str] = {}
        for agent in self:
            if id(agent.model) not in known:
                known[id(agent.model)] = _fingerprint(agent.model)
        return [known[id(agent.model)] for agent in self]

    def chat_fingerprints(self) -> list[str]:
        """Hash what turns text into each agent's tokens: its tokenizer with the chat template."""
        return [_tokenizer_fingerprint(agent.tokenizer) for agent in self]

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write each different model with its tokenizer, and the agents' models.

        Models with a `source` are written by name, not copied.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        places: dict[int, str] = {}
        for agent in self:
            if id(agent.model) in places:
                continue
            if agent.source is not None:
                places[id(agent.model)] = agent.source
                continue
            place = places[id(agent.model)] = f"{_OWN}{len(places)}"
            with no_progress_bars():
                agent.model.save_pretrained(folder / place)
            agent.tokenizer.save_pretrained(folder / place)
        who = {
            "names": self.names,
            "models": [places[id(agent.model)] for agent in self],
            "dtypes": [str(agent.model.dtype).removeprefix("torch.") for agent in self],
            # A tokenizer that is written here has its chat form in its template.
            "chat_forms": [asdict(agent.chat_form) if agent.source else {} for agent in self],
            "temperatures": [agent.temperature for agent in self],
            "seeds": [agent.seed for agent in self],
        }
        (folder / AGENTS_FILE).write_text(json.dumps(who, indent=2) + "\n")
        refresh_checksums(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "Agents":
        """Load a folder of `save_pretrained`; the agents are frozen.

        Raises:
            FileNotFoundError: if there are no agents in the folder.
        """
        folder = Path(folder)
        path = folder / AGENTS_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"there are no agents in {folder} ({AGENTS_FILE} is missing): give the folder "
                "`export` of a run that trained or used agents"
            )
        check_folder(folder)
        who = read_settings(path, names=list, models=list, dtypes=list)
        count = len(who["models"])
        # Older exports have no chat forms, or no temperatures.
        forms = who.get("chat_forms") or [{}] * count
        temperatures = who.get("temperatures") or [0.0] * count
        seeds = who.get("seeds") or [0] * count
        loaded: dict[str, PreTrainedModel] = {}
        made: dict[str, Agent] = {}
        agents = []
        for place, dtype, form, temperature, seed in zip(
            who["models"], who["dtypes"], forms, temperatures, seeds, strict=True
        ):
            key = json.dumps([place, form, temperature, seed])
            if key not in made:
                is_own = place.startswith(_OWN)
                made[key] = load_agent(
                    str(folder / place) if is_own else place,
                    dtype,
                    ChatForm() if is_own else ChatForm(**form),
                    temperature,
                    seed,
                    loaded.get(place),
                )
                loaded[place] = made[key].model
                if is_own:
                    made[key].source = None
            agents.append(made[key])
        return cls(agents, who["names"])


def _tokenizer_fingerprint(tokenizer: Any) -> str:
    """Hash the chat template and the tokens of a text, which do not depend on libraries."""
    ids = tokenizer(_PROBE, add_special_tokens=False)["input_ids"]
    parts = [list(ids), tokenizer.chat_template]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _fingerprint(model: nn.Module) -> str:
    """Hash all parameters with their names."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
        values = parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        digest.update(values.numpy().data)
    return digest.hexdigest()
