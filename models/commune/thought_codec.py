"""Encoder and decoder between agents' states and the latent thoughts behind them.

    states of all agents, side by side
      -> StateStandardizer     z-scores from fitted statistics
      -> encoder               Perceptron; or one per owner of latents, which reads only its state
      -> BatchNorm, no affine  latents of unit variance
      -> decoder               Perceptron, back to z-scores

Paper: ThoughtComm, 2510.20733: H = f(Z) over the last-token states of all agents; the autoencoder
estimates f and its inverse. The paper states neither layers nor normalisation; these are ours.
Latents have unit variance, since larger latents would reduce a penalty on the decoder's Jacobian at
no cost. States are z-scored, since dimensions of large variance would dominate the penalty and the
reconstruction.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from triptych.models.commune.perceptron import Activation, Perceptron
from triptych.models.commune.state_standardizer import StateStandardizer
from triptych.models.host.checked_folder import read_settings
from triptych.models.tensor_file import load_tensors, save_tensors

# Shapes: N samples, B batch, H dimensions of all agents' states together, Z latents

CONFIG_FILE, WEIGHTS_FILE = "thought_codec.json", "thought_codec.safetensors"
EVERYONE = -1


@dataclass(frozen=True)
class ThoughtCodecConfig:
    """Sizes of a codec.

    Args:
        state_sizes: Width of each agent's state; they may differ.
        num_latents: Z.
        encoder_hidden: Widths of the encoder's hidden layers; none: linear.
        decoder_hidden: Widths of the decoder's hidden layers.
        activation: `leaky_relu` or `gelu`, in both.
        latent_owners: The owner of each latent: the number of the only agent that the encoder reads
            for it, or -1 for all agents. Null: -1 for all latents, as in the paper. The masks are
            ours. Without them a latent that is private by its decoder may still contain what the
            encoder read from another agent.
        agent_names: Names of the agents, such as their models'; null: agent 0, agent 1, ...
        owner_hidden: Widths of the hidden layers of encoders that read one agent; null: those of
            `encoder_hidden`.

    Raises:
        ValueError: if these do not fit each other.
    """

    state_sizes: list[int]
    num_latents: int
    encoder_hidden: list[int] = field(default_factory=list)
    decoder_hidden: list[int] = field(default_factory=list)
    activation: Activation = "leaky_relu"
    latent_owners: list[int] | None = None
    agent_names: list[str] | None = None
    owner_hidden: list[int] | None = None

    def __post_init__(self) -> None:
        if not self.state_sizes or min(self.state_sizes) < 1:
            raise ValueError(
                f"state_sizes is {self.state_sizes}: give each agent's width, at least 1"
            )
        if self.num_latents < 1:
            raise ValueError(f"num_latents is {self.num_latents}: set it to at least 1")
        num_agents = len(self.state_sizes)
        if self.agent_names is not None and len(self.agent_names) != num_agents:
            raise ValueError(
                f"agent_names has {len(self.agent_names)} names for the {num_agents} agents of "
                "state_sizes: give one for each, or null"
            )
        owners = self.latent_owners
        if owners is not None:
            if len(owners) != self.num_latents:
                raise ValueError(
                    f"latent_owners has {len(owners)} entries for {self.num_latents} latents: give "
                    "one for each, or null"
                )
            if wrong := sorted({o for o in owners if not EVERYONE <= o < num_agents}):
                raise ValueError(
                    f"latent_owners names {wrong}: an owner is an agent's number, 0 to "
                    f"{num_agents - 1}, or {EVERYONE} for a latent that reads all agents"
                )

    @property
    def names(self) -> list[str]:
        """The agents' names, by default numbered."""
        return self.agent_names or [f"agent {k}" for k in range(len(self.state_sizes))]


class ThoughtEncoder(nn.Module):
    """Maps the states of all agents to latents, by one perceptron per owner of latents.

    Args:
        config: Options of the codec.
    """

    order_Z: Tensor

    def __init__(self, config: ThoughtCodecConfig) -> None:
        super().__init__()
        owners = config.latent_owners or [EVERYONE] * config.num_latents
        starts = [sum(config.state_sizes[:k]) for k in range(len(config.state_sizes))]
        self.reads: list[slice] = []
        self.parts = nn.ModuleList()
        latents: list[int] = []
        for owner in sorted(set(owners)):
            if owner == EVERYONE:
                read = slice(0, sum(config.state_sizes))
            else:
                read = slice(starts[owner], starts[owner] + config.state_sizes[owner])
            own = [latent for latent, agent in enumerate(owners) if agent == owner]
            hidden = config.encoder_hidden
            if owner != EVERYONE and config.owner_hidden is not None:
                hidden = config.owner_hidden
            self.reads.append(read)
            self.parts.append(
                Perceptron(read.stop - read.start, len(own), hidden, config.activation)
            )
            latents += own
        # The parts' outputs are ordered by owner; this restores the order of the latents.
        self.register_buffer(
            "order_Z", torch.tensor(latents, dtype=torch.int64).argsort(), persistent=False
        )

    def forward(self, scores_BH: Tensor) -> Tensor:
        """Map standardized states (B, H) to latents (B, Z) of any scale."""
        parts = [
            part(scores_BH[:, read]) for part, read in zip(self.parts, self.reads, strict=True)
        ]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)[:, self.order_Z]


class ThoughtCodec(nn.Module):
    """Maps agents' states to latent thoughts and back.

    Training uses z-scores: `standardize`, `encode_scores`, `decoder`. Latents are normalised to
    unit variance, in training mode by the batch, otherwise by running statistics (or those of
    `fit_latent_statistics`).

    Args:
        config: Sizes.
    """

    def __init__(self, config: ThoughtCodecConfig) -> None:
        super().__init__()
        self.config = config
        self.standardizer = StateStandardizer(sum(config.state_sizes))
        self.encoder = ThoughtEncoder(config)
        # With a larger epsilon, a small encoder could still produce small latents.
        self.latent_norm = nn.BatchNorm1d(config.num_latents, eps=1e-8, affine=False)
        self.decoder = Perceptron(
            config.num_latents,
            sum(config.state_sizes),
            config.decoder_hidden,
            config.activation,
        )

    @property
    def state_sizes(self) -> list[int]:
        """Width of each agent's state."""
        return self.config.state_sizes

    def may_matter(self) -> Tensor:
        """Return bool (K, Z); False if the encoder reads the latent only from another agent."""
        num_agents, num_latents = len(self.state_sizes), self.config.num_latents
        owner_Z = torch.tensor(
            self.config.latent_owners or [EVERYONE] * num_latents, dtype=torch.int64
        )
        agent_K1 = torch.arange(num_agents)[:, None]
        return (owner_Z == EVERYONE) | (owner_Z == agent_K1)

    def join(self, states: Sequence[Tensor]) -> Tensor:
        """Concatenate one (B, H_k) tensor per agent to (B, H).

        Raises:
            ValueError: if an agent's state has another width; the message names the agent.
        """
        self._check_agents([state.shape[-1] for state in states])
        return torch.cat(list(states), -1)

    def split(self, states_BH: Tensor) -> list[Tensor]:
        """Split (B, H) into the agents' states."""
        return list(states_BH.split(self.state_sizes, -1))

    def fit_statistics(self, batches: Tensor | Iterable[Tensor]) -> None:
        """Fit the states' mean and scale to (N, H), or batches of it; once, before training."""
        self.standardizer.fit(batches)

    @torch.no_grad()
    def fit_latent_statistics(self, states_NH: Tensor) -> None:
        """Set the running statistics of the latents to those of these states."""
        latents_NZ = self.encoder(self.standardizer(states_NH))
        assert self.latent_norm.running_mean is not None
        assert self.latent_norm.running_var is not None
        self.latent_norm.running_mean.copy_(latents_NZ.mean(0))
        self.latent_norm.running_var.copy_(latents_NZ.var(0, correction=0))

    def standardize(self, states_BH: Tensor) -> Tensor:
        """Convert states to z-scores."""
        scores_BH: Tensor = self.standardizer(states_BH)
        return scores_BH

    def encode_scores(self, scores_BH: Tensor) -> Tensor:
        """Encode z-scores to latents of unit variance, (B, Z)."""
        latents_BZ: Tensor = self.latent_norm(self.encoder(scores_BH))
        return latents_BZ

    def encode(self, states_BH: Tensor) -> Tensor:
        """Encode states to latents."""
        return self.encode_scores(self.standardize(states_BH))

    def decode(self, latents_BZ: Tensor) -> Tensor:
        """Decode latents to states in their original units."""
        return self.standardizer.inverse(self.decoder(latents_BZ))

    def forward(self, states_BH: Tensor) -> tuple[Tensor, Tensor]:
        """Return the latents (B, Z) and the reconstructed z-scores (B, H)."""
        latents_BZ = self.encode(states_BH)
        return latents_BZ, self.decoder(latents_BZ)

    def save(self, folder: str | Path) -> None:
        """Write `thought_codec.json` (sizes) and `thought_codec.safetensors` into a folder."""
        folder = Path(folder)
        sizes = asdict(self.config)
        save_tensors(folder / WEIGHTS_FILE, self.state_dict(), {"thought_codec": sizes})
        (folder / CONFIG_FILE).write_text(json.dumps(sizes, indent=2) + "\n")

    @classmethod
    def load(
        cls,
        folder: str | Path,
        state_sizes: Sequence[int] | None = None,
        agent_names: Sequence[str] | None = None,
    ) -> "ThoughtCodec":
        """Read a saved codec, in evaluation mode.

        Args:
            folder: A folder written by `save`.
            state_sizes: Widths of the present agents' states; checked if given.
            agent_names: Their names, in order; checked if given.

        Raises:
            FileNotFoundError: if the folder has no codec.
            ValueError: if its two files differ, or it was made for other agents.
        """
        folder = Path(folder)
        tensors, description = load_tensors(folder / WEIGHTS_FILE)
        sizes = _read_sizes(folder / CONFIG_FILE)
        if description.get("thought_codec") != sizes:
            raise ValueError(
                f"{CONFIG_FILE} and {WEIGHTS_FILE} in {folder} are not of the same codec: copy "
                "both again from the original"
            )
        codec = cls(ThoughtCodecConfig(**sizes))
        if state_sizes is not None:
            codec._check_agents(state_sizes)
        if agent_names is not None:
            codec._check_names(agent_names)
        codec.load_state_dict(tensors)
        return codec.eval()

    def _check_agents(self, state_sizes: Sequence[int]) -> None:
        names, own = self.config.names, self.state_sizes
        if len(state_sizes) != len(own):
            raise ValueError(
                f"the codec was made for {len(own)} agents ({', '.join(names)}) and there are "
                f"{len(state_sizes)}: give the same agents, or train a codec for these"
            )
        wrong = [
            f"{name} has {given} instead of {expected}"
            for name, expected, given in zip(names, own, state_sizes, strict=True)
            if given != expected
        ]
        if wrong:
            raise ValueError(
                f"states have other widths than the codec was made for: {', '.join(wrong)}. Give "
                "the same agents in the same order, or train a codec for these"
            )

    def _check_names(self, agent_names: Sequence[str]) -> None:
        own = self.config.names
        if len(agent_names) != len(own):
            self._check_agents([0] * len(agent_names))
        wrong = [
            f"agent {number} is {given!r} instead of {expected!r}"
            for number, (expected, given) in enumerate(zip(own, agent_names, strict=True))
            if given != expected
        ]
        if wrong:
            raise ValueError(
                f"the codec was made for other agents: {', '.join(wrong)}. Give the same agents in "
                "the same order, or train a codec for these"
            )


def _read_sizes(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: it belongs to {WEIGHTS_FILE} beside it")
    return read_settings(path)
