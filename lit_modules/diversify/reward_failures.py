"""Stops a training whose reward no longer scores anything."""

from collections.abc import Sequence

from triptych.objectives.rewards.base import Scores


class RewardFailedError(ValueError):
    """A reward that failed on every completion, with the first reason that it gave."""


class RewardFailures:
    """Counts steps in a row in which the reward failed on every completion.

    A training stops at its first step if all fail there, since then nothing has ever worked, and
    after `limit` such steps in a row later on. Rows without a score for want of a budget are no
    failures.

    Args:
        limit: Steps (or validation batches) in a row; None: never stop.

    Attributes:
        in_a_row: Training steps in a row in which all failed, up to now.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit = limit
        self.in_a_row = 0
        self._in_validation = 0
        self._first: tuple[str, str, Exception | None] | None = None

    def after_step(self, scores: Scores, texts: Sequence[str], all_failed: bool, step: int) -> None:
        """Count a training step.

        Args:
            scores: Scores of the completions of this process.
            texts: The completions.
            all_failed: Whether the reward failed on every completion of all processes.
            step: Number of the step, from 1 on.

        Raises:
            RewardFailedError: if the training has to stop.
        """
        self.in_a_row = self.in_a_row + 1 if all_failed else 0
        if self._is_new(all_failed, self.in_a_row):
            self._remember(scores, texts)
        if self.limit is None or not all_failed:
            return
        if step == 1:
            raise self._error(f"on all {len(texts)} completions of the first step")
        if self.in_a_row >= self.limit:
            raise self._error(
                f"on all completions of {_times(self.in_a_row, 'step')} (up to step {step})"
            )

    def after_validation_batch(self, scores: Scores, texts: Sequence[str]) -> None:
        """Count a batch of validation.

        Raises:
            RewardFailedError: if `limit` batches in a row have failed.
        """
        failed = all_failed(scores)
        self._in_validation = self._in_validation + 1 if failed else 0
        if self._is_new(failed, self._in_validation):
            self._remember(scores, texts)
        if self.limit is not None and self._in_validation >= self.limit:
            raise self._error(
                f"on all completions of {_times(self._in_validation, 'validation batch')}"
            )

    def _is_new(self, failed: bool, times: int) -> bool:
        return failed and (times == 1 or self._first is None)

    def _remember(self, scores: Scores, texts: Sequence[str]) -> None:
        for row, reason in scores.errors.items():
            if row not in scores.over_budget:
                self._first = reason, texts[row], scores.exception
                return

    def _error(self, where: str) -> RewardFailedError:
        reason, text, exception = self._first or ("unknown", "", None)
        error = RewardFailedError(
            f"the reward failed {where}; first of all, on {text!r}: {reason}. Mend the reward or "
            "its server; model.init_args.stop_after_failures sets how many steps in a row may fail"
        )
        error.__cause__ = exception
        return error


def all_failed(scores: Scores) -> bool:
    """Tell whether the reward failed on every completion for which there was a budget."""
    return num_failed(scores) > 0 and num_failed(scores) == len(scores.reward_B) - len(
        scores.over_budget
    )


def num_failed(scores: Scores) -> int:
    """Count the completions that the reward failed on; none for want of a budget."""
    return len(scores.errors.keys() - scores.over_budget)


def _times(count: int, what: str) -> str:
    plural = f"{what}es" if what.endswith("ch") else f"{what}s"
    return f"{count} {plural} in a row" if count > 1 else f"1 {what}"
