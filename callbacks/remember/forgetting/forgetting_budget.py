"""How much may be forgotten before a run is stopped."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class ForgettingBudget:
    """Limits for the main number of every retained probe, against its first measurement.

    Args:
        max_drop: Points (hundredths) by which a share, such as exact match or accuracy, may fall;
            null: any.
        max_rise_share: Share by which a negative log-likelihood may rise: 0.01 is one percent;
            null: any.

    Raises:
        ValueError: if a limit is negative, or there is none.
    """

    max_drop: float | None = None
    max_rise_share: float | None = None

    def __post_init__(self) -> None:
        if self.max_drop is None and self.max_rise_share is None:
            raise ValueError(
                "budget limits nothing: set max_drop (points) or max_rise_share, or leave it out"
            )
        for name in ("max_drop", "max_rise_share"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise ValueError(f"budget.{name} is {value}: set it to at least 0")

    def overspent(self, start: float, value: float, higher_is_better: bool) -> str | None:
        """Say by how much a number has gone beyond its limit; None where it has not.

        A number that is no longer finite is beyond any limit; one that never was is not measured.

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
        # A hair's breadth of rounding is not a point.
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
