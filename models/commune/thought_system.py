"""Agents with their codec, structure and adapter, saved in one folder."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.prefix_adapter import WEIGHTS_FILE as ADAPTER_FILE
from triptych.models.commune.prefix_adapter import PrefixAdapter
from triptych.models.commune.prefix_place import default_place
from triptych.models.commune.thought_codec import ThoughtCodec
from triptych.models.host.checked_folder import check_folder, read_settings, refresh_checksums

# Shapes: B batch, K agents, Z latents

SYSTEM_FILE = "thoughts.json"


class ThoughtSystem(nn.Module):
    """The parts of an exchange of thoughts, which are trained stage by stage and used together.

    Args:
        agents: The agents.
        state: The hidden state that represents an agent's thought.
        codec: Codec between states and thoughts.
        relevant_KZ: bool; the recovered structure: True where agent k's state depends on latent j.
        adapter: Turns thoughts into prefixes; None before it is trained.
    """

    relevant_KZ: Tensor

    def __init__(
        self,
        agents: Agents,
        state: StateConfig,
        codec: ThoughtCodec,
        relevant_KZ: Tensor,
        adapter: PrefixAdapter | None = None,
    ) -> None:
        super().__init__()
        self.agents = agents
        self.state = state
        self.codec = codec
        self.register_buffer("relevant_KZ", relevant_KZ)
        self.adapter: PrefixAdapter | None = None
        self.use_adapter(adapter)

    def use_adapter(self, adapter: PrefixAdapter | None) -> None:
        """Set the adapter, and where the agents read its prefixes."""
        self.adapter = adapter
        for agent in self.agents if adapter is not None else ():
            assert adapter is not None
            agent.place = adapter.config.place or default_place(agent.own_tokenizer)

    @torch.no_grad()
    def think(self, states_BH: Tensor) -> Tensor:
        """Encode the agents' concatenated states to latents, (B, Z), by fitted statistics."""
        self.codec.eval()
        return self.codec.encode(states_BH)

    def prefixes(self, latents_BZ: Tensor) -> list[Tensor]:
        """Compute each agent's prefix.

        Raises:
            ValueError: if no adapter is trained yet.
        """
        if self.adapter is None:
            raise ValueError(
                "there is no adapter yet: train one (triptych.lit_modules.commune.thought_adapter)"
            )
        return [self.adapter(latents_BZ, agent) for agent in range(len(self.agents))]

    def save_pretrained(self, folder: str | Path, **_: Any) -> None:
        """Write all parts into a folder."""
        folder = Path(folder)
        self.agents.save_pretrained(folder)
        self.codec.save(folder)
        if self.adapter is not None:
            self.adapter.save(folder)
        description = {
            "state": asdict(self.state),
            "relevant": self.relevant_KZ.int().tolist(),
            "agents": self.agents.fingerprints(),
            "chats": self.agents.chat_fingerprints(),
        }
        (folder / SYSTEM_FILE).write_text(json.dumps(description) + "\n")
        refresh_checksums(folder)

    @classmethod
    def load(cls, folder: str | Path) -> "ThoughtSystem":
        """Load a folder of `save_pretrained`.

        Raises:
            FileNotFoundError: if the folder has no such system.
            ValueError: if the agents' weights, tokenizers or chat templates differ from those that
                the codec was trained on.
        """
        folder = Path(folder)
        path = folder / SYSTEM_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"there is no codec with its agents in {folder} ({SYSTEM_FILE} is missing): give "
                "the folder `export` of a run of triptych.lit_modules.commune.thought_autoencoder, "
                "or that "
                "experiment's .yaml"
            )
        check_folder(folder)
        description = read_settings(path, agents=list, relevant=list, state=dict)
        agents = Agents.load(folder)
        if agents.fingerprints() != description["agents"]:
            changed = [
                name
                for name, now, then in zip(
                    agents.names, agents.fingerprints(), description["agents"], strict=True
                )
                if now != then
            ]
            raise ValueError(
                f"the weights of {', '.join(changed)} are not those that the codec in {folder} was "
                "trained on: give the same models, or train a codec for these"
            )
        # Older exports do not say how their agents' prompts were written.
        if (chats := agents.chat_fingerprints()) != description.get("chats", chats):
            changed = [
                name
                for name, now, then in zip(agents.names, chats, description["chats"], strict=True)
                if now != then
            ]
            raise ValueError(
                f"the tokenizer or chat template of {', '.join(changed)} is not the one that the "
                f"codec in {folder} was trained with, so states would be those of other prompts: "
                "give the same files, or train a codec for these"
            )
        state = StateConfig(**description["state"])
        sizes = [state.size(size) for size in agents.state_sizes]
        codec = ThoughtCodec.load(folder, sizes, agents.names)
        has_adapter = (folder / ADAPTER_FILE).is_file()
        adapter = PrefixAdapter.load(folder, agents.widths) if has_adapter else None
        relevant_KZ = torch.tensor(description["relevant"]).bool()
        return cls(agents, state, codec, relevant_KZ, adapter)
