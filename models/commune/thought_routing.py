"""Which latents each agent is sent, and with what weight."""

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
    """Which latents an agent is sent.

    Args:
        mode: `strict`, the paper's: those its own state depends on. `all`: every live one.
            `shared_only`: of its own, those of two agents or more. `allow_list`: as listed.
        allow: Of each agent the latents it may have, for `allow_list`.
        layout: `masked`: all Z places, those of others zero. `concat`, the paper's: only the
            agent's own, in the order of their agreement.
        weights: w_alpha by agreement: `learned` (from 1) or `fixed` at alpha / K.
        noise: Standard deviation of noise on what is sent, in those of latents, in training and in
            use: what is left of private evidence in shared latents drowns in it.

    Raises:
        ValueError: on settings that do not exist or do not go together.
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
    """Which latents each agent is sent, bool (K, Z); never a dead one.

    Raises:
        ValueError: if an agent would be sent nothing, or the list does not fit the structure.

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
            f"routing.mode {config.mode} leaves agents {empty} without a single thought: lower the "
            "structure's threshold, choose routing.mode: all, or train the codec with a weaker "
            "penalty"
        )
    return routed_KZ


class ThoughtRouting(nn.Module):
    """Selects and weighs the latents of an agent.

    What an agent is not sent is selected away, not multiplied by 0, so that no value of it, not
    even nan, can reach the agent.

    Args:
        relevant_KZ: bool; True where agent k's state depends on latent j.
        config: Which are sent.

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
        """What the agent is sent, (B, R)."""
        if self.config.noise:
            latents_BZ = latents_BZ + self.config.noise * torch.randn_like(latents_BZ)
        weight_Z = self.weight_by_agreement[self.agreement_Z]
        if self.config.layout == "concat":
            places = self.places[agent]
            return latents_BZ[:, places] * weight_Z[places]
        return torch.where(self.routed_KZ[agent], latents_BZ, 0.0) * weight_Z
