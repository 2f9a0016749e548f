"""Transforms of a property to a score in [0, 1], by REINVENT's and GuacaMol's published formulas.

All powers of the sigmoids have base 10, as in REINVENT (Blaschke et al. 2020).
"""

import math
from abc import ABC, abstractmethod


class Transform(ABC):
    """Maps a property to [0, 1]."""

    @abstractmethod
    def __call__(self, value: float) -> float:
        """Score a value."""


class Identity(Transform):
    """The unchanged value, which must lie in [0, 1]."""

    def __call__(self, value: float) -> float:
        """Return the value."""
        return value


class Sigmoid(Transform):
    """Rises from 0 to 1: 1 / (1 + 10^(-10 k (v - (high + low) / 2) / (high - low))).

    Args:
        low: Value with a score near 0.
        high: Value with a score near 1.
        k: Steepness; at the ends the score differs from 0 and 1 by about 10^(-5k).

    Raises:
        ValueError: If `low` is not below `high` or `k` is not positive.

    >>> Sigmoid(0.0, 4.0, k=0.2)(2.0)
    0.5
    """

    def __init__(self, low: float, high: float, k: float = 0.25) -> None:
        _check_ends(low, high, k)
        self.low, self.high, self.k = low, high, k

    def __call__(self, value: float) -> float:
        """Score a value."""
        middle = (self.high + self.low) / 2
        return logistic10(10 * self.k * (value - middle) / (self.high - self.low))


class ReverseSigmoid(Transform):
    """Falls from 1 to 0: 1 / (1 + 10^(10 k (v - (high + low) / 2) / (high - low))).

    Args:
        low: Value with a score near 1.
        high: Value with a score near 0.
        k: Steepness.

    Raises:
        ValueError: If `low` is not below `high` or `k` is not positive.

    >>> round(ReverseSigmoid(-16.0, 0.0, k=0.15)(-16.0), 4)  # 1 / (1 + 10^-0.75)
    0.849
    """

    def __init__(self, low: float, high: float, k: float = 0.25) -> None:
        _check_ends(low, high, k)
        self.low, self.high, self.k = low, high, k

    def __call__(self, value: float) -> float:
        """Score a value."""
        middle = (self.high + self.low) / 2
        return logistic10(-10 * self.k * (value - middle) / (self.high - self.low))


class DoubleSigmoid(Transform):
    """Near 1 between two ends: rises at `low`, falls at `high`.

    f(v) = 1 / (1 + 10^(-r (v - low) / d)) - 1 / (1 + 10^(-s (v - high) / d)).

    Args:
        low: Position of the rise.
        high: Position of the fall.
        divisor: d, REINVENT's coef_div.
        falling: s, its coef_si.
        rising: r, its coef_se.

    Raises:
        ValueError: If `low` is not below `high` or a coefficient is not positive.
    """

    def __init__(
        self,
        low: float,
        high: float,
        divisor: float = 100.0,
        falling: float = 150.0,
        rising: float = 150.0,
    ) -> None:
        _check_ends(low, high, min(divisor, falling, rising))
        self.low, self.high = low, high
        self.divisor, self.falling, self.rising = divisor, falling, rising

    def __call__(self, value: float) -> float:
        """Score a value."""
        up = logistic10(self.rising * (value - self.low) / self.divisor)
        down = logistic10(self.falling * (value - self.high) / self.divisor)
        return max(0.0, up - down)  # the difference may be -1e-17


class Step(Transform):
    """1 from `low` to `high`, both included, else 0.

    Args:
        low: Least value with score 1.
        high: Largest value with score 1.

    Raises:
        ValueError: If `low` is above `high`.
    """

    def __init__(self, low: float = -math.inf, high: float = math.inf) -> None:
        if not low <= high:
            raise ValueError(f"a step from {low} to {high}: set low to at most high")
        self.low, self.high = low, high

    def __call__(self, value: float) -> float:
        """Score a value."""
        return float(self.low <= value <= self.high)


class Gaussian(Transform):
    """1 at `mean`, falling to both sides: exp(-(v - mean)^2 / (2 sd^2)).

    Args:
        mean: Value with score 1.
        sd: Standard deviation: the score is 0.61 at one, 0.14 at two.

    Raises:
        ValueError: If `sd` is not positive.

    Source: GuacaMol (Brown et al. 2019), as MinGaussian and MaxGaussian.

    >>> round(Gaussian(2.0, 1.0)(3.0), 4)
    0.6065
    """

    def __init__(self, mean: float, sd: float) -> None:
        if not sd > 0:
            raise ValueError(f"a Gaussian with sd {sd}: set it above 0")
        self.mean, self.sd = mean, sd

    def __call__(self, value: float) -> float:
        """Score a value."""
        return math.exp(-((self._moved(value) - self.mean) ** 2) / (2 * self.sd**2))

    def _moved(self, value: float) -> float:
        return value


class MinGaussian(Gaussian):
    """1 up to `mean`, falling above it as a Gaussian: the less the better.

    >>> MinGaussian(2.0, 1.0)(-5.0), round(MinGaussian(2.0, 1.0)(3.0), 4)
    (1.0, 0.6065)
    """

    def _moved(self, value: float) -> float:
        return max(value, self.mean)


class MaxGaussian(Gaussian):
    """1 from `mean` on, falling below it as a Gaussian: the more the better.

    >>> MaxGaussian(2.0, 1.0)(5.0), round(MaxGaussian(2.0, 1.0)(1.0), 4)
    (1.0, 0.6065)
    """

    def _moved(self, value: float) -> float:
        return min(value, self.mean)


class ValueMapping(Transform):
    """Scores of single values, such as numbers of rings or classes of a model.

    Args:
        scores: Value -> score in [0, 1].
        otherwise: Score of all other values.

    Raises:
        ValueError: If a score is outside of [0, 1], or there is none.

    >>> ValueMapping({1: 0.5, 2: 1.0})(2.0), ValueMapping({1: 0.5, 2: 1.0})(3.0)
    (1.0, 0.0)
    """

    def __init__(self, scores: dict[float, float], otherwise: float = 0.0) -> None:
        if not scores or not all(0 <= s <= 1 for s in (*scores.values(), otherwise)):
            raise ValueError(
                f"scores are {scores} and {otherwise} otherwise: give a score from 0 to 1 for at "
                "least one value"
            )
        self.scores = {float(value): float(score) for value, score in scores.items()}
        self.otherwise = otherwise

    def __call__(self, value: float) -> float:
        """Look a value up."""
        return self.scores.get(float(value), self.otherwise)


def logistic10(power: float) -> float:
    """Compute 1 / (1 + 10^-power) without overflow."""
    if power < -300:
        return 0.0
    return 1 / (1 + 10 ** (-power)) if power < 300 else 1.0


def _check_ends(low: float, high: float, steepness: float) -> None:
    if not low < high or not steepness > 0:
        raise ValueError(
            f"a sigmoid from {low} to {high} with the coefficient {steepness}: set low below high "
            "and every coefficient above 0"
        )
