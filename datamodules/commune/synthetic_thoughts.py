"""States of two agents made from known latents, to check what a codec recovers.

    row_sparse_linear      every dimension of a state mixes a few latents of its agent
    row_sparse_gaussian    the same with normal latents, which independence cannot identify
    row_sparse_nonlinear   the linear one, with a leaky ReLU on each dimension
    block_dense_nonlinear  every dimension of a state depends on all latents of its agent

Each agent has private latents and latents that both share. Sparse rows identify every latent. Dense
blocks identify the shared block, and each private block up to shared latents (see
`triptych.objectives.commune.structure.identifiability`).

Paper: ThoughtComm, 2510.20733, synthetic experiments: independent Laplace latents, an invertible
map with structure. The paper does not state the map; these are ours.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, get_args

import lightning as L
import torch
from jsonargparse.typing import PositiveInt
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
    """Samples with their ground truth.

    Attributes:
        latents_NZ: Independent, zero mean, unit variance, Laplace (normal in
            `row_sparse_gaussian`), in the order: private to agent 0, shared, private to agent 1.
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
        """True where a latent affects an agent's state, bool (K, Z)."""
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
        kind: The map, see above.
        group_sizes: Numbers of latents private to agent 0, shared, private to agent 1.
        state_size: Dimensions of each agent's state, at least as many as it has latents.
        num_samples: N.
        seed: Seed of map and samples. They are drawn separately: the map does not depend on the
            number of samples.
        latents_per_row: Latents that a dimension of a sparse map mixes. The map is redrawn until
            its support identifies every latent; few dimensions need several draws.

    Raises:
        ValueError: if sizes do not fit, or no map was found that identifies all latents.
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
            "state needs at least as many dimensions"
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
    """Synthetic thoughts in batches of `states` and `latents`.

    Args:
        kind: See `make_thoughts`.
        group_sizes: See `make_thoughts`.
        state_size: See `make_thoughts`.
        num_samples: Number of training samples.
        num_val_samples: Number of validation samples, of the same map.
        latents_per_row: See `make_thoughts`.
        batch_size: Samples in a batch.
        seed: Seed of map and samples.
    """

    def __init__(
        self,
        kind: Kind = "row_sparse_linear",
        group_sizes: list[int] | None = None,
        state_size: PositiveInt = 32,
        num_samples: PositiveInt = 6000,
        num_val_samples: PositiveInt = 2000,
        latents_per_row: PositiveInt = 3,
        batch_size: PositiveInt = 256,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_samples, self.num_val_samples = num_samples, num_val_samples
        self.batch_size = batch_size
        self.seed = seed
        self._draw = partial(
            make_thoughts,
            kind,
            group_sizes or [8, 8, 8],
            state_size,
            num_samples + num_val_samples,
            seed,
            latents_per_row,
        )
        self.thoughts: SyntheticThoughts | None = None

    def setup(self, stage: str | None = None) -> None:
        """Draw the samples, once."""
        if self.thoughts is None:
            self.thoughts = self._draw()

    def train_dataloader(self) -> DataLoader[Any]:
        """Return the shuffled training batches."""
        return self._loader(slice(0, self.num_samples), shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        """Return the validation batches, in order."""
        return self._loader(slice(self.num_samples, None), shuffle=False)

    def _loader(self, part: slice, shuffle: bool) -> DataLoader[Any]:
        assert self.thoughts is not None
        tensors: Any = {  # Any: torch's stubs want datasets, but tensors have rows, too
            "states": self.thoughts.states_NH[part],
            "latents": self.thoughts.latents_NZ[part],
        }
        samples = StackDataset(**tensors)
        return DataLoader(samples, self.batch_size, shuffle=shuffle)


def _laplace(num_samples: int, num_latents: int, generator: torch.Generator) -> Tensor:
    # Inverse of the distribution function; the scale 1 / sqrt(2) gives unit variance.
    uniform_NZ = torch.rand(num_samples, num_latents, generator=generator, dtype=torch.float64)
    centred_NZ = (uniform_NZ - 0.5).clamp(-0.5 + 1e-12, 0.5 - 1e-12)
    values_NZ = -centred_NZ.sign() * torch.log1p(-2 * centred_NZ.abs()) / 2**0.5
    return values_NZ.float()


def _bent_map(latents_NZ: Tensor, num_rows: int, generator: torch.Generator) -> Tensor:
    """Apply a rotation, a leaky ReLU, and rows of unit length: injective if num_rows >= Z."""
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
        identified = len(identifiable_groups(weight_HZ != 0).identified) == num_latents
        if identified and int(torch.linalg.matrix_rank(weight_HZ)) == num_latents:
            return weight_HZ
    raise ValueError(
        f"none of {_MOST_DRAWS} drawn maps of {latents_per_row} latents a row identifies all "
        f"{num_latents} latents: give more dimensions (state_size) or fewer latents a row"
    )
