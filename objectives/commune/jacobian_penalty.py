"""The penalty on a decoder's Jacobian, as an object with settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.models.commune.perceptron import Perceptron
from triptych.objectives.commune.jacobian import (
    Decoder,
    Reduction,
    block_l1,
    block_squares,
    closed_form_l1,
    closed_form_squares,
    column_l1,
    element_l1,
    group_norm,
    jacobian,
    probed_squares,
)

# Shapes: B batch, Z latents

Norm = Literal["l1", "group"]
Estimator = Literal["closed_form", "exact", "columns", "blocks", "probes"]
ESTIMATORS: dict[str, tuple[Estimator, ...]] = {
    "l1": ("closed_form", "exact", "columns", "blocks"),
    "group": ("closed_form", "exact", "probes"),
}


@dataclass(frozen=True)
class JacobianPenalty:
    """Maps a decoder and latents to the unweighted penalty.

    Args:
        norm: `l1` of all elements, as in the paper; or `group`, a group lasso over agents' blocks
            of columns, which makes latents private.
        estimator: `closed_form`: exact, at most one hidden layer. `exact`: any decoder, by forward
            mode. `columns` (l1): unbiased, any decoder. `blocks` (l1): unbiased, at most one hidden
            layer. `probes` (group): any decoder, unbiased before the root.
        reduction: `sum`, as in ||J||_1, or `mean` over elements (group: root mean squares of
            blocks). The mean over samples is always taken.
        num_columns: Columns drawn by `columns` and `blocks`, at most all.
        num_rows: Rows drawn by `blocks`, at most all.
        num_probes: Probes per agent.
        num_samples: Samples of the batch to use, drawn anew in every step; null: all.
        chunk_size: Columns at a time of `exact` and `columns`; null: all.

    Raises:
        ValueError: on numbers out of range, or an estimator that the norm does not have.

    Source: 2510.20733. Everything except `l1` with `sum` is ours.
    """

    reduction: Reduction
    norm: Norm = "l1"
    estimator: Estimator = "closed_form"
    num_columns: int = 32
    num_rows: int = 1024
    num_probes: int = 1
    num_samples: int | None = None
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        if self.estimator not in ESTIMATORS[self.norm]:
            raise ValueError(
                f"estimator is {self.estimator!r}: with norm {self.norm} choose "
                f"{', '.join(ESTIMATORS[self.norm])}"
            )
        for name in ("num_columns", "num_rows", "num_probes", "num_samples", "chunk_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}: set it to at least 1")

    def __call__(
        self,
        decoder: Decoder,
        latents_BZ: Tensor,
        state_sizes: Sequence[int],
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Compute the penalty.

        Args:
            decoder: Maps latents to the concatenated standardized states of all agents.
            latents_BZ: Latents at which to evaluate; the penalty is differentiable in them.
            state_sizes: Width of each agent's state.
            generator: Source of randomness.

        Returns:
            A scalar.

        Raises:
            ValueError: if the estimator needs a closed form and the decoder has none.
        """
        chosen_BZ = self._choose(latents_BZ, generator)
        if self.norm == "group":
            squares_KZ = self._squares(decoder, chosen_BZ, state_sizes, generator)
            return group_norm(squares_KZ, state_sizes, reduction=self.reduction)
        if self.estimator == "exact":
            return element_l1(
                jacobian(decoder, chosen_BZ, self.chunk_size), reduction=self.reduction
            )
        num_columns = min(self.num_columns, latents_BZ.shape[1])
        if self.estimator == "columns":
            return column_l1(
                decoder,
                chosen_BZ,
                num_columns,
                reduction=self.reduction,
                chunk_size=self.chunk_size,
                generator=generator,
            )
        perceptron = _perceptron(decoder, self.estimator)
        if self.estimator == "blocks":
            num_rows = min(self.num_rows, sum(state_sizes))
            return block_l1(
                perceptron,
                chosen_BZ,
                num_rows,
                num_columns,
                reduction=self.reduction,
                generator=generator,
            )
        return closed_form_l1(perceptron, chosen_BZ, reduction=self.reduction)

    def _squares(
        self,
        decoder: Decoder,
        latents_BZ: Tensor,
        state_sizes: Sequence[int],
        generator: torch.Generator | None,
    ) -> Tensor:
        if self.estimator == "probes":
            return probed_squares(decoder, latents_BZ, state_sizes, self.num_probes, generator)
        if self.estimator == "exact":
            return block_squares(jacobian(decoder, latents_BZ, self.chunk_size), state_sizes)
        return closed_form_squares(_perceptron(decoder, self.estimator), latents_BZ, state_sizes)

    def _choose(self, latents_BZ: Tensor, generator: torch.Generator | None) -> Tensor:
        if self.num_samples is None or self.num_samples >= len(latents_BZ):
            return latents_BZ
        order_B = torch.randperm(len(latents_BZ), generator=generator, device=latents_BZ.device)
        return latents_BZ[order_B[: self.num_samples]]


def _perceptron(decoder: Decoder, estimator: str) -> Perceptron:
    if not isinstance(decoder, Perceptron):
        raise ValueError(
            f"the estimator {estimator} needs a triptych.models.commune.perceptron.Perceptron and "
            f"the decoder is a "
            f"{type(decoder).__name__}: choose exact, columns or probes"
        )
    return decoder
