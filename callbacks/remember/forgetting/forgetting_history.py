"""All measurements of a run's probes, in order."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class RetentionScores(NamedTuple):
    """The matrix R of `retention`, and the scores before training.

    Attributes:
        scores_TT: Score on each group (column) after each group (row).
        start_T: Score on each group at the first measurement.
    """

    scores_TT: list[list[float]]
    start_T: list[float]


class ForgettingHistory:
    """Rows of plain values: `step`, `visit`, `probe`, `metric`, `value`, `change`.

    `change` is the difference from the first measurement of the same number.

    Attributes:
        rows: The rows.
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, step: int, visit: int | None, probe: str, values: Mapping[str, float]) -> None:
        """Add the numbers of a probe.

        Args:
            step: Optimizer steps taken.
            visit: Visits begun; None for data without visits.
            probe: Name of the probe.
            values: The numbers by name.
        """
        for metric, value in values.items():
            start = self.first(probe, metric)
            self.rows.append(
                {
                    "step": step,
                    "visit": visit,
                    "probe": probe,
                    "metric": metric,
                    "value": value,
                    "change": 0.0 if start is None else value - start,
                }
            )

    def has(self, step: int, visit: int | None) -> bool:
        """Return whether the last measurement was made at this step and visit."""
        return bool(self.rows) and (self.rows[-1]["step"], self.rows[-1]["visit"]) == (step, visit)

    def of(self, probe: str, metric: str) -> list[dict[str, Any]]:
        """Return the rows of one number."""
        return [row for row in self.rows if (row["probe"], row["metric"]) == (probe, metric)]

    def first(self, probe: str, metric: str) -> float | None:
        """Return the first measurement of a number; None if there is none."""
        return next((row["value"] for row in self.of(probe, metric)), None)

    def last(self, probe: str, metric: str) -> float | None:
        """Return the latest measurement of a number; None if there is none."""
        return next((row["value"] for row in reversed(self.of(probe, metric))), None)

    def retention(self, probe: str, groups: Mapping[str, int]) -> RetentionScores | None:
        """Build the matrix R of a probe with groups of visits.

        Args:
            probe: Name of the probe.
            groups: Name of each group's number -> number of visits at the end of the group.

        Returns:
            R; None if a group was not measured at its end.
        """
        at_visit = {
            metric: {row["visit"]: row["value"] for row in self.of(probe, metric)}
            for metric in groups
        }
        ends = list(groups.values())
        if not groups or any(end not in at_visit[metric] for end in ends for metric in groups):
            return None
        scores = [[at_visit[metric][end] for metric in groups] for end in ends]
        return RetentionScores(scores, [self.of(probe, metric)[0]["value"] for metric in groups])
