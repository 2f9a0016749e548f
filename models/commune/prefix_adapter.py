"""Adapters that turn recovered thoughts into the prefixes that agents read.

    latents of all agents
      -> ThoughtRouting    the latents sent to each agent, weighted by agreement
      -> PrefixAdapter     m vectors in the agent's embedding space, at its embeddings' scale

Paper: ThoughtComm, 2510.20733: Z~_i = concat over alpha of w_alpha Z_alpha of the latents relevant
to agent i; P_i = g(Z~_i), m = 1 in its main experiments. Ours: all routing except `strict` with
`concat`, and the prefix's scale. The output of a raw adapter is many times as long as a token
embedding and leads to nan in the frozen model. A prefix of exact zeros gives nan gradients in the
model's norms, so the gate is an exponential, which is never 0.
"""

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from triptych.models.commune.perceptron import Activation, Perceptron
from triptych.models.commune.prefix_place import PLACES, Place
from triptych.models.commune.thought_routing import RoutingConfig, ThoughtRouting
from triptych.models.tensor_file import load_tensors, save_tensors

# Shapes: B batch, Z latents, R routed numbers, K agents, M prefix tokens, D embedding width

CONFIG_FILE, WEIGHTS_FILE = "prefix_adapter.json", "prefix_adapter.safetensors"


@dataclass(frozen=True)
class PrefixAdapterConfig:
    """Options of the adapters.

    Args:
        routing: The latents sent to each agent.
        num_prefix_tokens: M, the paper's m.
        hidden: Widths of the hidden layers.
        activation: `gelu` or `leaky_relu`.
        share: One adapter for all agents, with the agent's number as an input, instead of one per
            agent. It needs agents with embeddings of equal width, and the `masked` layout.
        initial_gate: Initial scale of a prefix, in root mean squares of the agent's token
            embeddings; it is learned.
        place: Where the prefix stands in an agent's prompt: at the start of the `user_text`,
            `before_reply` (before the assistant's turn), `after_bos` (after the first token), or
            `before_prompt`, as in the paper. Null: `user_text` for an agent with a chat template,
            `before_prompt` for one without.

    Raises:
        ValueError: if a number is out of range, or there is no such place.
    """

    routing: RoutingConfig = field(default_factory=RoutingConfig)
    num_prefix_tokens: int = 1
    hidden: list[int] = field(default_factory=lambda: [128])
    activation: Activation = "gelu"
    share: bool = False
    initial_gate: float = 0.1
    place: Place | None = None

    def __post_init__(self) -> None:
        if self.place is not None and self.place not in PLACES:
            raise ValueError(
                f"adapter.place is {self.place!r}: choose {', '.join(PLACES)}, or null"
            )
        if self.num_prefix_tokens < 1:
            raise ValueError(
                f"adapter.num_prefix_tokens is {self.num_prefix_tokens}: set it to at least 1"
            )
        if self.initial_gate <= 0:
            raise ValueError(
                f"adapter.initial_gate is {self.initial_gate}: set it above 0 (a prefix of exact "
                "zeros gives nan gradients)"
            )
        if self.share and self.routing.layout == "concat":
            raise ValueError(
                "adapter.share needs routing.layout: masked, since with concat each agent is sent "
                "another number of latents"
            )


class PrefixAdapter(nn.Module):
    """Turns the latents of all agents into each agent's prefix.

    Args:
        relevant_KZ: bool; the recovered structure.
        widths: Width of each agent's embeddings.
        scales: Root mean square element of each agent's embeddings.
        config: Options.

    Raises:
        ValueError: if an agent would get no latent, or agents of different widths share.
    """

    scale_K: Tensor

    def __init__(
        self,
        relevant_KZ: Tensor,
        widths: Sequence[int],
        scales: Sequence[float],
        config: PrefixAdapterConfig,
    ) -> None:
        super().__init__()
        if len(widths) != len(relevant_KZ) or len(scales) != len(relevant_KZ):
            raise ValueError(
                f"there are {len(widths)} agents and the structure has {len(relevant_KZ)}: give "
                "the agents that the codec was trained on"
            )
        if config.share and len(set(widths)) > 1:
            raise ValueError(
                f"the agents' embeddings have widths {list(widths)}, and one adapter has one "
                "output: set adapter.share: false"
            )
        self.config = config
        self.widths = list(widths)
        self.relevant_KZ = relevant_KZ.cpu()
        self.routing = ThoughtRouting(relevant_KZ, config.routing)
        self.register_buffer("scale_K", torch.tensor(list(scales)))
        num_tokens = config.num_prefix_tokens
        sizes = self.routing.sizes
        if config.share:
            shapes = [(sizes[0] + len(widths), widths[0])]
        else:
            shapes = list(zip(sizes, widths, strict=True))
        self.parts = nn.ModuleList(
            Perceptron(size, num_tokens * width, config.hidden, config.activation)
            for size, width in shapes
        )
        self.log_gate_K = nn.Parameter(
            torch.full((len(self.parts),), math.log(config.initial_gate))
        )

    def forward(self, latents_BZ: Tensor, agent: int) -> Tensor:
        """Compute the agent's prefix, (B, M, D)."""
        routed_BR = self.routing(latents_BZ, agent)
        number = 0 if self.config.share else agent
        if self.config.share:
            who_K = F.one_hot(torch.tensor(agent, dtype=torch.int64), len(self.widths)).to(
                routed_BR
            )
            routed_BR = torch.cat([routed_BR, who_K.expand(len(routed_BR), -1)], 1)
        raw_BMD = self.parts[number](routed_BR).unflatten(1, (self.config.num_prefix_tokens, -1))
        unit_BMD = F.rms_norm(raw_BMD, raw_BMD.shape[-1:])
        prefix_BMD: Tensor = unit_BMD * (self.log_gate_K[number].exp() * self.scale_K[agent])
        return prefix_BMD

    def save(self, folder: str | Path) -> None:
        """Write `prefix_adapter.json` and `prefix_adapter.safetensors` into a folder."""
        folder = Path(folder)
        description: dict[str, Any] = {
            "config": asdict(self.config),
            "widths": self.widths,
            "relevant": self.relevant_KZ.int().tolist(),
        }
        save_tensors(folder / WEIGHTS_FILE, self.state_dict(), {"prefix_adapter": description})
        (folder / CONFIG_FILE).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: str | Path, widths: Sequence[int] | None = None) -> "PrefixAdapter":
        """Read a saved adapter, in evaluation mode.

        Args:
            folder: A folder written by `save`.
            widths: Widths of the embeddings of the present agents; checked if given.

        Raises:
            FileNotFoundError: if the folder has no adapter.
            ValueError: if it was made for other agents.
        """
        tensors, description = load_tensors(Path(folder) / WEIGHTS_FILE)
        made = description["prefix_adapter"]
        if widths is not None and list(widths) != made["widths"]:
            raise ValueError(
                f"the adapter in {folder} was made for agents with embeddings of widths "
                f"{made['widths']}, and these have {list(widths)}: give the same agents in the "
                "same order, or train an adapter for these"
            )
        # Adapters of older exports stand before the prompt.
        settings = {"place": "before_prompt"} | made["config"]
        settings["routing"] = RoutingConfig(**settings["routing"])
        scales = tensors["scale_K"].tolist()
        relevant_KZ = torch.tensor(made["relevant"]).bool()
        adapter = cls(relevant_KZ, made["widths"], scales, PrefixAdapterConfig(**settings))
        adapter.load_state_dict(tensors)
        return adapter.eval()
