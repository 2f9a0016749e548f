"""Tells an oracle that is down from a molecule that breaks it, and pauses the search at the first.

A licence server, a full disk or a wrong path makes every call fail, whatever the molecule. After a
failure, the oracle is asked again for a molecule that it has scored: if that fails too, it is down.
"""

from collections.abc import Mapping, Sequence

from triptych.objectives.rewards.base import FatalRewardError
from triptych.objectives.rewards.molecules.objective import MoleculeScore

# Failed batches are tried again in batches smaller by this factor, down to single molecules.
SMALLER = 8


class OracleFailedError(FatalRewardError):
    """The oracle is down: the search pauses, with the first error that it gave."""


class OracleFailures:
    """Counts molecules in a row that the oracle failed on.

    Args:
        limit: This many in a row pause the search; None: nothing does.
        num_parts: Components of a complete score. A molecule that a cheap filter ruled out says
            nothing about the others.

    Raises:
        ValueError: If the limit is below 1.
    """

    def __init__(self, limit: int | None, num_parts: int) -> None:
        if limit is not None and limit < 1:
            raise ValueError(
                f"stop_after_failures is {limit}: set it to at least 1, or to null, so that "
                "failures never pause a search"
            )
        self.limit = limit
        self.in_a_row = 0
        self._num_parts = num_parts

    def note(self, result: MoleculeScore) -> None:
        """Count a result."""
        if result.error is not None:
            self.in_a_row += 1
        elif len(result.components) == self._num_parts:
            self.in_a_row = 0

    @property
    def is_reached(self) -> bool:
        """Whether the limit is reached."""
        return self.limit is not None and self.in_a_row >= self.limit


def oracle_failed(
    errors: Mapping[str, str], numbers: Mapping[str, int], why: str
) -> OracleFailedError:
    """Word the error that pauses a search.

    Args:
        errors: Molecule -> reason.
        numbers: Molecule -> number of its call.
        why: What shows that the oracle is down.
    """
    smiles, first = next(iter(errors.items()))
    where = _calls([numbers[text] for text in errors if text in numbers])
    return OracleFailedError(
        f"the oracle failed on {len(errors)} molecule{'s' * (len(errors) > 1)}{where}, and {why}; "
        f"first on {smiles!r}:\n{first}\nThe search is paused. These calls are not counted: mend "
        "the oracle, then resume the run, or start it again with its ledger, and they are made "
        "again. (stop_after_failures of the reward sets how many failures in a row pause a search)"
    )


def _calls(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    low, high = min(numbers), max(numbers)
    return f" (call {low})" if low == high else f" (calls {low} to {high})"
