"""States of two agents made from latents that are known, to check what a codec recovers.

    row_sparse_linear      every dimension of a state mixes a few latents of its agent
    row_sparse_gaussian    the same of normal latents, which their independence cannot tell apart
    row_sparse_nonlinear   the linear one, each dimension then bent by a leaky ReLU of its own
    block_dense_nonlinear  every dimension of a state depends on all latents of its agent

Each agent has latents of its own and some that both share. With sparse rows every latent can be
recovered by itself; with dense blocks only the shared block, and each private block up to shared
ones (see `triptych.objectives.commune.structure.identifiability`).

Paper: ThoughtComm, 2510.20733, synthetic experiments: independent Laplace latents, an invertible
map with structure. The map itself is not stated; these are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import lightning as L
import torch
from torch import Tensor
from torch.utils.data import DataLoader, StackDataset

from triptych.objectives.commune.structure.identifiability import identifiable_groups
from triptych.objectives.commune.structure.sharing import Sharing

# Shapes: N samples, H state dimensions of both agents, Z latents, K = 2 agents

Kind = Literal[
    "row_sparse_linear", "row_sparse_gaussian", "row_sparse_nonlinear", "block_dense_nonlinear"
]
BEND = 0.3  # slope of the leaky ReLUs below zero
_MOST_DRAWS = 200


@dataclass(frozen=True)
class SyntheticThoughts:
    """Samples with the truth behind them.

    Attributes:
        latents_NZ: Independent, zero mean, unit variance, Laplace (normal in
            `row_sparse_gaussian`); first those private to agent 0, then the shared, then those
            private to agent 1.
        states_NH: Both agents' states side by side.
        state_sizes: Width of each agent's state.
        support_HZ: bool; True where the state depends on the latent.
        groups_Z: 0: private to agent 0, 1: shared, 2: private to agent 1.
    """

    latents_NZ: Tensor
    states_NH: Tensor
    state_sizes: list[int]
    support_HZ: Tensor
    groups_Z: list[int]

    @property
    def relevant(self) -> Tensor:
        """Which latents matter to which agent, bool (K, Z)."""
        return Sharing.of_support(self.support_HZ, self.state_sizes).relevant_KZ


def make_thoughts(
    kind: Kind,
    group_sizes: Sequence[int],
    state_size: int,
    num_samples: int,
    seed: int,
    latents_per_row: int = 3,
) -> SyntheticThoughts:
    """Draw a map and samples.

    Args:
        kind: Which map, see above.
        group_sizes: Latents private to agent 0, shared, private to agent 1.
        state_size: Dimensions of each agent's state, at least as many as it has latents.
        num_samples: N.
        seed: Of all of it; samples and map are drawn apart, so that more samples are of the same
            map.
        latents_per_row: Latents that a dimension mixes, in sparse maps. They are drawn until every
            latent can be told apart by the support, which with few dimensions takes several draws.

    Raises:
        ValueError: if sizes do not fit, or no map was found that tells all latents apart.
    """
    if kind not in get_args(Kind):
        raise ValueError(f"kind is {kind!r}: choose {', '.join(get_args(Kind))}")
    if len(group_sizes) != 3 or min(group_sizes) < 1:
        raise ValueError(
            f"group_sizes is {list(group_sizes)}: give three numbers, private to agent 0, shared, "
            "private to agent 1"
        )
    first, shared, second = group_sizes
    if state_size < max(first, second) + shared:
        raise ValueError(
            f"state_size is {state_size} and an agent has {max(first, second) + shared} latents: a "
            "state needs as many dimensions as latents or more"
        )
    if not 1 <= latents_per_row <= min(first, second) + shared:
        raise ValueError(f"latents_per_row is {latents_per_row}: an agent has fewer latents")
    map_generator = torch.Generator().manual_seed(2 * seed)
    sample_generator = torch.Generator().manual_seed(2 * seed + 1)
    if kind == "row_sparse_gaussian":
        latents_NZ = torch.randn(num_samples, sum(group_sizes), generator=sample_generator)
    else:
        latents_NZ = _laplace(num_samples, sum(group_sizes), sample_generator)
    reads = [slice(0, first + shared), slice(first, sum(group_sizes))]
    if kind == "block_dense_nonlinear":
        support_HZ = torch.zeros(2 * state_size, sum(group_sizes), dtype=torch.bool)
        states = []
        for agent, read in enumerate(reads):
            support_HZ[agent * state_size : (agent + 1) * state_size, read] = True
            states.append(_bent_map(latents_NZ[:, read], state_size, map_generator))
        states_NH = torch.cat(states, 1)
    else:
        weight_HZ = _sparse_weight(
            reads, state_size, sum(group_sizes), latents_per_row, map_generator
        )
        support_HZ = weight_HZ != 0
        states_NH = latents_NZ @ weight_HZ.mT
        if kind == "row_sparse_nonlinear":
            states_NH = torch.nn.functional.leaky_relu(states_NH, BEND)
    groups_Z = [group for group, size in enumerate(group_sizes) for _ in range(size)]
    return SyntheticThoughts(latents_NZ, states_NH, [state_size, state_size], support_HZ, groups_Z)


class SyntheticThoughtsData(L.LightningDataModule):
    """Serves synthetic thoughts as batches of `states` and `latents`.

    Args:
        kind: See `make_thoughts`.
        group_sizes: See `make_thoughts`.
        state_size: See `make_thoughts`.
        num_samples: Training samples.
        num_val_samples: Further samples of the same map, for validation.
        latents_per_row: See `make_thoughts`.
        batch_size: Samples a batch.
        seed: Of map and samples.
    """

    def __init__(
        self,
        kind: Kind = "row_sparse_linear",
        group_sizes: list[int] | None = None,
        state_size: int = 32,
        num_samples: int = 6000,
        num_val_samples: int = 2000,
        latents_per_row: int = 3,
        batch_size: int = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_samples, self.num_val_samples = num_samples, num_val_samples
        self.batch_size = batch_size
        self.seed = seed
        self.map = {
            "kind": kind,
            "group_sizes": group_sizes or [8, 8, 8],
            "state_size": state_size,
            "latents_per_row": latents_per_row,
        }
        self.thoughts: SyntheticThoughts | None = None

    def setup(self, stage: str | None = None) -> None:
        """Draw the samples, once."""
        if self.thoughts is None:
            number = self.num_samples + self.num_val_samples
            self.thoughts = make_thoughts(**self.map, num_samples=number, seed=self.seed)

    def train_dataloader(self) -> DataLoader:
        """Shuffled."""
        return self._loader(slice(0, self.num_samples), shuffle=True)

    def val_dataloader(self) -> DataLoader:
        """In order."""
        return self._loader(slice(self.num_samples, None), shuffle=False)

    def _loader(self, part: slice, shuffle: bool) -> DataLoader:
        assert self.thoughts is not None
        samples = StackDataset(
            states=self.thoughts.states_NH[part], latents=self.thoughts.latents_NZ[part]
        )
        return DataLoader(samples, self.batch_size, shuffle=shuffle)


def _laplace(num_samples: int, num_latents: int, generator: torch.Generator) -> Tensor:
    # The inverse of the distribution function; the scale 1 / sqrt(2) has unit variance.
    uniform_NZ = torch.rand(num_samples, num_latents, generator=generator, dtype=torch.float64)
    centred_NZ = (uniform_NZ - 0.5).clamp(-0.5 + 1e-12, 0.5 - 1e-12)
    values_NZ = -centred_NZ.sign() * torch.log1p(-2 * centred_NZ.abs()) / 2**0.5
    return values_NZ.float()


def _bent_map(latents_NZ: Tensor, num_rows: int, generator: torch.Generator) -> Tensor:
    """Orthogonal, leaky ReLU, rows of unit length: one to one with num_rows >= latents."""
    size = latents_NZ.shape[1]
    rotation, _ = torch.linalg.qr(torch.randn(size, size, generator=generator))
    weight = torch.nn.functional.normalize(torch.randn(num_rows, size, generator=generator), dim=1)
    return torch.nn.functional.leaky_relu(latents_NZ @ rotation.mT, BEND) @ weight.mT


def _sparse_weight(
    reads: Sequence[slice],
    state_size: int,
    num_latents: int,
    latents_per_row: int,
    generator: torch.Generator,
) -> Tensor:
    for _ in range(_MOST_DRAWS):
        rows = []
        for read in reads:
            size = read.stop - read.start
            order = torch.rand(state_size, size, generator=generator).argsort(1)
            weight = torch.zeros(state_size, num_latents)
            weight.scatter_(
                1,
                read.start + order[:, :latents_per_row],
                torch.randn(state_size, latents_per_row, generator=generator),
            )
            rows.append(torch.nn.functional.normalize(weight, dim=1))
        weight_HZ = torch.cat(rows)
        told_apart = len(identifiable_groups(weight_HZ != 0).identified) == num_latents
        if told_apart and int(torch.linalg.matrix_rank(weight_HZ)) == num_latents:
            return weight_HZ
    raise ValueError(
        f"no map of {latents_per_row} latents a row was found in {_MOST_DRAWS} draws that tells "
        f"all {num_latents} latents apart: give more dimensions (state_size) or fewer latents a row"
    )
