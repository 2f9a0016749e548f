"""Several rewards as one: their weighted sum, weighted geometric mean, or product.

Each part is a component of the result, under its name, for logs and tables. A completion that one
part cannot score has no reward, and the reason names the part.

Shapes: B completions, R rewards.
"""

import math
from abc import abstractmethod
from collections.abc import Sequence
from typing import Self

import torch
from torch import Tensor

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.base import Reward, Scores
from triptych.objectives.rewards.length_window import LengthWindow
from triptych.objectives.rewards.xml_format import XmlFormat


class ComposedReward(Reward):
    """Combines the values of several rewards completion by completion.

    Args:
        rewards: The parts.
        weights: A weight for each; null: 1 for all.

    Raises:
        ValueError: if there is no part, or not one finite weight for each.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        kind = type(self).__name__
        if not rewards:
            raise ValueError(f"{kind} has no rewards: give at least one")
        self.rewards = list(rewards)
        self.weights = [1.0] * len(rewards) if weights is None else [float(w) for w in weights]
        if len(self.weights) != len(self.rewards) or not all(map(math.isfinite, self.weights)):
            raise ValueError(
                f"{kind} has {len(self.rewards)} rewards and the weights {self.weights}: give one "
                "finite weight for each"
            )

    @classmethod
    def example(cls) -> Self:
        """Return a reward of two parts."""
        return cls([XmlFormat(), LengthWindow(least=1, most=3, falloff=3)])

    @property
    def names(self) -> list[str]:
        """Names of the parts; a second part of the same name is called name_2."""
        names: list[str] = []
        for reward in self.rewards:
            count = 1 + sum(other.name == reward.name for other in self.rewards[: len(names)])
            names.append(reward.name if count == 1 else f"{reward.name}_{count}")
        return names

    @abstractmethod
    def combine(self, reward_BR: Tensor) -> Tensor:
        """Combine the values of the parts, all finite: (B,)."""

    def prepare(self, device: torch.device) -> None:
        """Prepare the parts."""
        for reward in self.rewards:
            reward.prepare(device)

    def score(self, rollout: Rollout) -> Scores:
        """Score by each part and combine the values."""
        components: dict[str, Tensor] = {}
        errors: dict[int, str] = {}
        over_budget: set[int] = set()
        parts = []
        for name, reward in zip(self.names, self.rewards, strict=True):
            scores = reward(rollout)
            parts.append(scores.reward_B)
            components[name] = scores.reward_B
            components |= {f"{name}/{key}": part for key, part in scores.components.items()}
            for row, message in scores.errors.items():
                errors.setdefault(row, f"{name}: {message}")
            over_budget |= scores.over_budget
        return Scores(self.combine(torch.stack(parts, dim=-1)), components, errors, over_budget)

    def _require_positive(self) -> None:
        for name, reward in zip(self.names, self.rewards, strict=True):
            if reward.range[0] < 0:
                raise ValueError(
                    f"{type(self).__name__} needs rewards of at least 0, but {name} goes down to "
                    f"{reward.range[0]:g}: take WeightedSum, or a reward that is never negative"
                )


class WeightedSum(ComposedReward):
    """sum_r w_r R_r. Weights may be negative and need not sum to 1."""

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        super().__init__(rewards, weights)
        ends = [
            sorted((weight * low, weight * high)) if weight else [0.0, 0.0]
            for weight, (low, high) in zip(
                self.weights, (reward.range for reward in self.rewards), strict=True
            )
        ]
        self.range = (sum(low for low, _ in ends), sum(high for _, high in ends))

    def combine(self, reward_BR: Tensor) -> Tensor:
        """Sum with weights."""
        return reward_BR @ reward_BR.new_tensor(self.weights)


class WeightedGeometricMean(ComposedReward):
    """(prod_r R_r^w_r)^(1 / sum_r w_r): 0 if any part with a weight is 0.

    REINVENT and Saturn call this the product of their scoring components.

    Raises:
        ValueError: if a part can be negative, a weight is, or all weights are 0.
    """

    def __init__(self, rewards: Sequence[Reward], weights: Sequence[float] | None = None) -> None:
        super().__init__(rewards, weights)
        self._require_positive()
        if min(self.weights) < 0 or sum(self.weights) == 0:
            raise ValueError(
                f"WeightedGeometricMean has the weights {self.weights}: set all to at least 0, and "
                "one above it"
            )
        ranges = [
            reward.range
            for reward, weight in zip(self.rewards, self.weights, strict=True)
            if weight
        ]
        self.range = (min(low for low, _ in ranges), max(high for _, high in ranges))

    def combine(self, reward_BR: Tensor) -> Tensor:
        """Compute the weighted geometric mean, in logarithms."""
        weights_R = reward_BR.new_tensor(self.weights)
        used_R = weights_R > 0
        log_BR = reward_BR[:, used_R].clamp(min=0).log()
        return (log_BR @ (weights_R[used_R] / weights_R.sum())).exp()


class Product(ComposedReward):
    """prod_r R_r: for instance a reward for quality times a condition of 0 or 1.

    Args:
        rewards: The parts, none of them negative.

    Raises:
        ValueError: if a part can be negative.
    """

    def __init__(self, rewards: Sequence[Reward]) -> None:
        super().__init__(rewards)
        self._require_positive()
        lows, highs = zip(*(reward.range for reward in self.rewards), strict=True)
        # 0 times infinity is 0 here: a part that is always 0 makes the product 0.
        self.range = (math.prod(lows), 0.0 if 0.0 in highs else math.prod(highs))

    def combine(self, reward_BR: Tensor) -> Tensor:
        """Multiply."""
        return reward_BR.prod(-1)
