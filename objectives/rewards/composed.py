"""Several rewards as one: their weighted sum, weighted mean, weighted geometric mean, or product.

Each part is a component of the result, under its name, for logs and tables. A completion that one
part cannot score has no reward, and the reason names the part. A part that does not apply to a
completion (it returned None) is skipped there.

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
        names: A name for each in logs and tables; null: their own.

    Raises:
        ValueError: if there is no part, not one finite weight for each, or not one name for each.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
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
        if names is not None and len(set(names)) != len(self.rewards):
            raise ValueError(
                f"{kind} has {len(self.rewards)} rewards and the names {list(names)}: give one for "
                "each, all different"
            )
        self._names = None if names is None else list(names)

    @classmethod
    def example(cls) -> Self:
        """Return a reward of two parts."""
        return cls([XmlFormat(), LengthWindow(least=1, most=3, falloff=3)])

    @property
    def names(self) -> list[str]:
        """Names of the parts; a second part of the same name is called name_2."""
        if self._names is not None:
            return self._names
        names: list[str] = []
        for reward in self.rewards:
            count = 1 + sum(other.name == reward.name for other in self.rewards[: len(names)])
            names.append(reward.name if count == 1 else f"{reward.name}_{count}")
        return names

    @abstractmethod
    def combine(self, reward_BR: Tensor) -> Tensor:
        """Combine the values of the parts, nan where a part does not apply: (B,)."""

    def prepare(self, device: torch.device) -> None:
        """Prepare the parts."""
        for reward in self.rewards:
            reward.prepare(device)

    def begin(self, rollout: Rollout) -> None:
        """Let the parts start in the background, all at once."""
        for reward in self.rewards:
            reward.begin(rollout)

    def score(self, rollout: Rollout) -> Scores:
        """Score by each part and combine the values."""
        components: dict[str, Tensor] = {}
        errors: dict[int, str] = {}
        over_budget: set[int] = set()
        skipped: list[set[int]] = []
        exception = None
        parts = []
        for name, reward in zip(self.names, self.rewards, strict=True):
            scores = reward(rollout)
            parts.append(scores.reward_B)
            components[name] = scores.reward_B
            components |= {f"{name}/{key}": part for key, part in scores.components.items()}
            for row, message in scores.errors.items():
                if row not in scores.not_applicable:
                    errors.setdefault(row, f"{name}: {message}")
            over_budget |= scores.over_budget
            skipped.append(scores.not_applicable)
            exception = exception or scores.exception
        reward_B = self.combine(torch.stack(parts, dim=-1))
        by_all = set.intersection(*skipped)
        return Scores(reward_B, components, errors, over_budget, by_all, exception)

    def _require_positive(self) -> None:
        for name, reward in zip(self.names, self.rewards, strict=True):
            if reward.range[0] < 0:
                raise ValueError(
                    f"{type(self).__name__} needs rewards of at least 0, but {name} goes down to "
                    f"{reward.range[0]:g}: take WeightedSum, or a reward that is never negative"
                )


class WeightedSum(ComposedReward):
    """sum_r w_r R_r over the parts that apply. Weights may be negative and need not sum to 1.

    A part that does not apply adds nothing, as in TRL. `WeightedMean` keeps the scale instead.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rewards, weights, names)
        ends = [
            sorted((weight * low, weight * high)) if weight else [0.0, 0.0]
            for weight, (low, high) in zip(
                self.weights, (reward.range for reward in self.rewards), strict=True
            )
        ]
        lows, highs = zip(*ends, strict=True)
        if len(ends) > 1:  # a skipped part adds 0: the sum of the others is in the range too
            lows = tuple(min(low, 0.0) for low in lows)
            highs = tuple(max(high, 0.0) for high in highs)
        self.range = (sum(lows), sum(highs))

    def combine(self, reward_BR: Tensor) -> Tensor:
        """Sum with weights."""
        return reward_BR.nan_to_num(nan=0.0) @ reward_BR.new_tensor(self.weights)


class WeightedMean(ComposedReward):
    """sum_r w_r R_r / sum_r w_r over the parts that apply: one scale for tasks of several kinds.

    Raises:
        ValueError: if a weight is not above 0.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rewards, weights, names)
        if min(self.weights) <= 0:
            raise ValueError(
                f"WeightedMean has the weights {self.weights}: set all above 0, or take WeightedSum"
            )
        lows, highs = zip(*(reward.range for reward in self.rewards), strict=True)
        self.range = (min(lows), max(highs))

    def combine(self, reward_BR: Tensor) -> Tensor:
        """Compute the weighted mean of the parts that apply."""
        weight_BR = torch.where(reward_BR.isnan(), 0.0, reward_BR.new_tensor(self.weights))
        return (reward_BR.nan_to_num(nan=0.0) * weight_BR).sum(-1) / weight_BR.sum(-1)


class WeightedGeometricMean(ComposedReward):
    """(prod_r R_r^w_r)^(1 / sum_r w_r): 0 if any part with a weight is 0.

    REINVENT and Saturn call this the product of their scoring components.

    Raises:
        ValueError: if a part can be negative, a weight is, or all weights are 0.
    """

    def __init__(
        self,
        rewards: Sequence[Reward],
        weights: Sequence[float] | None = None,
        names: Sequence[str] | None = None,
    ) -> None:
        super().__init__(rewards, weights, names)
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
        used_BR = reward_BR[:, used_R]
        weight_BR = torch.where(used_BR.isnan(), 0.0, weights_R[used_R])
        log_BR = torch.where(used_BR.isnan(), 0.0, used_BR.clamp(min=0).log())
        return ((log_BR * weight_BR).sum(-1) / weight_BR.sum(-1)).exp()


class Product(ComposedReward):
    """prod_r R_r: for instance a reward for quality times a condition of 0 or 1.

    Args:
        rewards: The parts, none of them negative.
        names: A name for each in logs and tables; null: their own.

    Raises:
        ValueError: if a part can be negative.
    """

    def __init__(self, rewards: Sequence[Reward], names: Sequence[str] | None = None) -> None:
        super().__init__(rewards, names=names)
        self._require_positive()
        lows, highs = zip(*(reward.range for reward in self.rewards), strict=True)
        # A skipped part counts as 1. 0 times infinity is 0: a part that is always 0 makes it 0.
        if len(self.rewards) > 1:
            lows = tuple(min(low, 1.0) for low in lows)
            highs = tuple(high if high == 0 else max(high, 1.0) for high in highs)
        self.range = (math.prod(lows), 0.0 if 0.0 in highs else math.prod(highs))

    def combine(self, reward_BR: Tensor) -> Tensor:
        """Multiply."""
        return reward_BR.nan_to_num(nan=1.0).prod(-1)
