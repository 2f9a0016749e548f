"""The routing of latents to agents, and the weights of the latents."""

# Shapes: B batch, Z latents, R routed numbers, K agents

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Mode = Literal["strict", "all", "shared_only", "allow_list"]


Layout = Literal["masked", "concat"]


@dataclass(frozen=True)
class RoutingConfig:
    """The latents sent to each agent.

    Args:
        mode: `strict`, as in the paper: latents that the agent's state depends on. `all`: every
            live latent. `shared_only`: latents that the states of this and another agent depend on.
            `allow_list`: the latents in `allow`.
        allow: The latents of each agent, for `allow_list`.
        layout: `masked`: all Z places, with zeros for latents that are not sent. `concat`, as in
            the paper: only the latents sent, ordered by agreement.
        weights: w_alpha by agreement: `learned` (from 1) or `fixed` at alpha / K.
        noise: Standard deviation of noise on the latents sent, in units of theirs, in training and
            in use. It hides the rest of private evidence in shared latents.

    Raises:
        ValueError: on settings that do not exist or contradict each other.
    """

    mode: Mode = "strict"
    allow: list[list[int]] | None = None
    layout: Layout = "masked"
    weights: Literal["learned", "fixed"] = "learned"
    noise: float = 0.0

    def __post_init__(self) -> None:
        for name, choices in (
            ("mode", get_args(Mode)),
            ("layout", get_args(Layout)),
            ("weights", ("learned", "fixed")),
        ):
            if getattr(self, name) not in choices:
                raise ValueError(
                    f"routing.{name} is {getattr(self, name)!r}: choose {', '.join(choices)}"
                )
        if not 0 <= self.noise < math.inf:
            raise ValueError(f"routing.noise is {self.noise}: set it to at least 0")
        if (self.mode == "allow_list") != (self.allow is not None):
            raise ValueError(
                "routing.allow lists each agent's latents for routing.mode: allow_list, and for "
                "that alone: set both or neither"
            )


def routed_latents(relevant_KZ: Tensor, config: RoutingConfig) -> Tensor:
    """Return the latents sent to each agent, bool (K, Z); dead latents are never sent.

    Raises:
        ValueError: if an agent would get no latent, or the list does not fit the structure.

    >>> relevant = torch.tensor([[True, True, False], [False, True, True]])
    >>> routed_latents(relevant, RoutingConfig("shared_only")).int().tolist()
    [[0, 1, 0], [0, 1, 0]]
    """
    agreement_Z = relevant_KZ.sum(0)
    num_agents, num_latents = relevant_KZ.shape
    if config.mode == "strict":
        routed_KZ = relevant_KZ.clone()
    elif config.mode == "all":
        routed_KZ = (agreement_Z > 0).expand_as(relevant_KZ).clone()
    elif config.mode == "shared_only":
        routed_KZ = relevant_KZ & (agreement_Z >= 2)
    else:
        allow = config.allow or []
        if len(allow) != num_agents:
            raise ValueError(
                f"routing.allow has {len(allow)} lists for {num_agents} agents: give one for each"
            )
        routed_KZ = torch.zeros_like(relevant_KZ)
        for agent, latents in enumerate(allow):
            if wrong := [z for z in latents if not 0 <= z < num_latents or not agreement_Z[z]]:
                raise ValueError(
                    f"routing.allow gives agent {agent} the latents {wrong}, which are dead or do "
                    f"not exist: latents are 0 to {num_latents - 1}"
                )
            routed_KZ[agent, latents] = True
    if empty := (~routed_KZ.any(1)).nonzero().flatten().tolist():
        raise ValueError(
            f"routing.mode {config.mode} leaves agents {empty} without any thought: lower the "
            "structure's threshold, choose routing.mode: all, or train the codec with a weaker "
            "penalty"
        )
    return routed_KZ


class ThoughtRouting(nn.Module):
    """Selects and weighs the latents of an agent.

    Latents that are not sent are removed by selection, not multiplied by 0. So none of their
    values, not even nan, reaches the agent.

    Args:
        relevant_KZ: bool; True where agent k's state depends on latent j.
        config: The routing.

    Raises:
        ValueError: see `routed_latents`.
    """

    routed_KZ: Tensor
    agreement_Z: Tensor

    def __init__(self, relevant_KZ: Tensor, config: RoutingConfig) -> None:
        super().__init__()
        self.config = config
        agreement_Z = relevant_KZ.sum(0)
        self.register_buffer("routed_KZ", routed_latents(relevant_KZ, config))
        self.register_buffer("agreement_Z", agreement_Z)
        num_agents = len(relevant_KZ)
        # Places of the latents in the paper's order, by agreement.
        self.places = [
            sorted(row.nonzero().flatten().tolist(), key=lambda z: (int(agreement_Z[z]), z))
            for row in self.routed_KZ
        ]
        if config.weights == "learned":
            self.weight_by_agreement = nn.Parameter(torch.ones(num_agents + 1))
        else:
            fixed = torch.arange(num_agents + 1) / num_agents
            self.register_buffer("weight_by_agreement", fixed)

    @property
    def sizes(self) -> list[int]:
        """R of each agent."""
        if self.config.layout == "masked":
            return [self.routed_KZ.shape[1]] * len(self.routed_KZ)
        return [len(places) for places in self.places]

    def forward(self, latents_BZ: Tensor, agent: int) -> Tensor:
        """Return the weighted latents sent to the agent, (B, R)."""
        if self.config.noise:
            latents_BZ = latents_BZ + self.config.noise * torch.randn_like(latents_BZ)
        weight_Z = self.weight_by_agreement[self.agreement_Z]
        if self.config.layout == "concat":
            places = self.places[agent]
            return latents_BZ[:, places] * weight_Z[places]
        return torch.where(self.routed_KZ[agent], latents_BZ, 0.0) * weight_Z
