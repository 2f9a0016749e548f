"""A budget of forgetting that stops a run."""

import math
from dataclasses import dataclass

from jsonargparse.typing import NonNegativeFloat


@dataclass(frozen=True)
class ForgettingBudget:
    """Limits of the main number of every retained probe, against its first measurement.

    Args:
        max_drop: Points (hundredths) by which a share, such as exact match or accuracy, may fall;
            null: no limit.
        max_rise_share: Share by which a negative log-likelihood may rise (0.01 is one percent);
            null: no limit.

    Raises:
        ValueError: if there is no limit.
    """

    max_drop: NonNegativeFloat | None = None
    max_rise_share: NonNegativeFloat | None = None

    def __post_init__(self) -> None:
        if self.max_drop is None and self.max_rise_share is None:
            raise ValueError(
                "budget limits nothing: set max_drop (points) or max_rise_share, or leave it out"
            )

    def overspent(self, start: float, value: float, higher_is_better: bool) -> str | None:
        """Describe by how much a number exceeds its limit; return None if it does not.

        A number that is no longer finite exceeds any limit. One that never was finite has none.

        >>> ForgettingBudget(max_drop=3.5).overspent(0.98, 0.94, higher_is_better=True)
        'fell by 4.00 points (0.98 to 0.94; the budget is 3.5)'
        >>> ForgettingBudget(max_rise_share=0.01).overspent(4.0, 4.03, higher_is_better=False)
        """
        if not math.isfinite(start):
            return None
        limit = self.max_drop if higher_is_better else self.max_rise_share
        if limit is None:
            return None
        if not math.isfinite(value):
            return f"is {value}"
        drop, rise = 100 * (start - value), (value - start) / start if start else math.inf
        # Tolerate rounding errors.
        if higher_is_better and drop > limit + 1e-9:
            return (
                f"fell by {drop:.2f} points ({start:.4g} to {value:.4g}; the budget is {limit:g})"
            )
        if not higher_is_better and value > start and rise > limit + 1e-12:
            return (
                f"rose by {100 * rise:.2f}% ({start:.4g} to {value:.4g}; the budget is "
                f"{100 * limit:g}%)"
            )
        return None
