"""The reward of molecules: an oracle with a budget and a ledger of its calls.

SMILES -> canonical -> ledger: known?  yes -> its score, without a call
                                       no  -> ruled out?  yes -> 0, without a call
                                                          no  -> reserve a call -> scoring pool
                                                                 -> ledger

With `num_workers` the pool scores while the policy computes log-probabilities.
"""

import logging
import math
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.base import Reward, Scores
from triptych.objectives.rewards.molecules.fragments import largest_fragment
from triptych.objectives.rewards.molecules.objective import MoleculeObjective, MoleculeScore
from triptych.objectives.rewards.molecules.oracle_failures import (
    SMALLER,
    OracleFailedError,
    OracleFailures,
    oracle_failed,
)
from triptych.objectives.rewards.molecules.oracle_ledger import PAUSED, Call, OracleLedger
from triptych.objectives.rewards.molecules.properties import DrugLikeness
from triptych.objectives.rewards.molecules.scoring_pool import ScoringPool

logger = logging.getLogger(__name__)


class OracleReward(Reward):
    """Scores each different molecule once, until the budget is spent.

    A string that is no valid molecule has reward 0 and costs no call, and so has a molecule that a
    preliminary filter of the objective or a component refuses. Once `is_spent`, molecules that are
    not in the ledger have no reward (nan, with their rows in `Scores.over_budget`): training should
    stop.

    A molecule on which a component fails, crashes or hangs has no reward (nan) and no weight in
    training; the ledger keeps the error, and a resumed run tries it again. After a failure the
    oracle is asked for a molecule that it has scored before. If it works, failed molecules are
    tried once more, in ever smaller batches. If it does not, the search pauses with the oracle's
    own error and its budget kept. It also pauses if nothing was scored yet and at least two fail.

    Args:
        objective: Scores a molecule.
        budget: Maximum number of oracle calls, that is of different molecules.
        ledger: SQLite file of the calls; null: in memory. A resumed run continues with the calls in
            the file, and so does another run of the same objective.
        num_workers: Processes that score; 0 scores in this process, without a time limit.
        time_limit_s: Seconds per molecule; only with workers.
        keep_stereo: Whether molecules that differ only in stereochemistry count as different.
        seed: Seed of the run, written to the ledger with each call; null: a search writes its own
            seed, other runs write 0.
        largest_fragment: Score the largest fragment of a salt or mixture in its place.
        keep_mixtures: Whether molecules of several fragments are scored; if not, they have reward 0
            and cost no call.
        stop_after_failures: Failed molecules in a row that pause the search although the oracle
            works on others; null: no failure ever pauses it.
        keep_isotopes: Whether molecules that differ only in isotopes count as different.

    Raises:
        ValueError: If the budget is below 1 or a setting is out of range; when scoring begins, if
            the ledger belongs to another objective.
        OracleFailedError: When scoring, if the oracle is down.
        LedgerError: When scoring, if the ledger's file cannot be read or written.
    """

    range = (0.0, 1.0)

    def __init__(
        self,
        objective: MoleculeObjective,
        budget: int,
        ledger: str | None = None,
        num_workers: int = 0,
        time_limit_s: float = 10.0,
        keep_stereo: bool = True,
        seed: int | None = None,
        largest_fragment: bool = False,
        keep_mixtures: bool = True,
        stop_after_failures: int | None = 20,
        keep_isotopes: bool = True,
    ) -> None:
        if budget < 1:
            raise ValueError(
                f"budget is {budget}: an oracle that may not be called scores nothing; set it to "
                "at least 1"
            )
        self.objective, self.budget, self.seed = objective, budget, seed
        self.keep_stereo, self.keep_isotopes = keep_stereo, keep_isotopes
        self.largest_fragment, self.keep_mixtures = largest_fragment, keep_mixtures
        self.ledger_path = ledger
        self.failures = OracleFailures(stop_after_failures, len(objective.names))
        self.pool = ScoringPool(objective, num_workers, time_limit_s)
        self._ledger: OracleLedger | None = None
        self._begun: _Begun | None = None
        #: Molecules that failed in this process, which are not tried again in it.
        self._failed: dict[str, str] = {}

    @classmethod
    def example(cls) -> Self:
        """Return a drug-likeness reward with ten calls."""
        return cls(MoleculeObjective([DrugLikeness()]), budget=10)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ledger": None, "_begun": None}

    @property
    def ledger(self) -> OracleLedger:
        """The ledger, opened at first use."""
        if self._ledger is None:
            description = {"keep_stereo": self.keep_stereo, **self.objective.describe()}
            if not self.keep_isotopes:  # older ledgers, which keep them, do not name it
                description["keep_isotopes"] = False
            path = None if self.ledger_path is None else Path(self.ledger_path)
            self._ledger = OracleLedger(path, description)
            self._ledger.release()
        return self._ledger

    @property
    def num_calls(self) -> int:
        """Calls made, those of earlier runs with this ledger included; failed ones do not count."""
        return self.ledger.num_made()

    @property
    def is_spent(self) -> bool:
        """Whether the budget is spent, so that no new molecule will be scored."""
        return self.num_calls >= self.budget

    def prepare(self, device: torch.device) -> None:
        """Open the ledger."""
        _ = self.ledger

    def begin(self, rollout: Rollout) -> None:
        """Start the workers, if there are any; results reach the ledger in `score`."""
        if self.pool.num_workers:
            self.prepare(rollout.token_ids_BT.device)
            self._begun = self._begin(rollout)

    def score(self, rollout: Rollout) -> Scores:
        """Score molecules.

        Returns:
            Rewards; in `components`, each component (nan where it was not computed) and
            `oracle_call`, the number of the call that scored the molecule, 0 for invalid strings.
        """
        begun, self._begun = self._begun, None
        if begun is None or begun.rollout is not rollout:
            begun = self._begin(rollout)
        self._make(begun)
        canonical, known = begun.canonical, begun.known
        known |= self.ledger.look_up(list(begun.numbers))
        reward_B = torch.zeros(len(rollout), dtype=torch.float32)
        names = [*self.objective.names, "oracle_call"]
        if self._rules_out:
            names.append("ruled_out")
        components = {
            name: torch.full((len(rollout),), math.nan, dtype=torch.float32) for name in names
        }
        errors: dict[int, str] = {}
        over_budget: set[int] = set()
        for row, text in enumerate(canonical):
            if self._rules_out and text is not None:
                components["ruled_out"][row] = float(text in begun.ruled_out)
            if text is None:
                components["oracle_call"][row] = 0
            elif text in known:
                self._fill(row, known[text], reward_B, components)
            elif text in self._failed:
                reward_B[row] = math.nan
                errors[row] = self._failed[text]
            elif text not in begun.ruled_out:
                reward_B[row] = math.nan
                errors[row] = f"the budget of {self.budget} oracle calls is spent"
                over_budget.add(row)
        return Scores(reward_B, components, errors, over_budget)

    def canonical(self, text: str) -> str | None:
        """Return the SMILES under which the ledger has a molecule; None for an invalid string."""
        kept = (self.keep_stereo, self.keep_isotopes)
        smiles = canonical_smiles(text, *kept)
        if smiles is not None and self.largest_fragment and "." in smiles:
            smiles = canonical_smiles(largest_fragment(smiles), *kept)
        return smiles

    def checkpoint(self) -> None:
        """Move all calls into the ledger's file itself, which can then be copied alone."""
        if self._ledger is not None:
            self._ledger.checkpoint()

    def close(self) -> None:
        """Stop the workers and close the ledger; both restart at the next use."""
        self.pool.close()
        if self._ledger is not None and self._ledger.path is not None:
            self._ledger.close()
            self._ledger = None

    @property
    def _rules_out(self) -> bool:
        """Whether some molecules score 0 without a call."""
        return not self.keep_mixtures or self.objective.rules_out

    def _begin(self, rollout: Rollout) -> "_Begun":
        """Look up known molecules and start the calls that the budget allows."""
        canonical = [self.canonical(text) for text in rollout.texts]
        different = list(dict.fromkeys(text for text in canonical if text is not None))
        known = self.ledger.look_up(different)
        new = [text for text in different if text not in known and text not in self._failed]
        ruled_out = {text for text in new if self._is_ruled_out(text)}
        new = [text for text in new if text not in ruled_out and text not in self._failed]
        numbers = self.ledger.reserve(new, self.budget, self.seed or 0)
        results = self.pool.score(list(numbers))
        return _Begun(rollout, canonical, known, ruled_out, numbers, results)

    def _is_ruled_out(self, smiles: str) -> bool:
        if not self.keep_mixtures and "." in smiles:
            return True
        if not self.objective.rules_out:
            return False
        try:
            return self.objective.ruled_out(smiles) is not None
        except Exception as error:  # of a user's own filter
            self._failed[smiles] = f"{type(error).__name__}: {error}"
            return False

    # -- calls, and what becomes of those that fail -----------------------------------------------

    def _make(self, begun: "_Begun") -> None:
        """Make the reserved calls and write them down.

        Raises:
            OracleFailedError: If the oracle is down.
        """
        called, before = list(begun.numbers), self.failures.in_a_row
        found: dict[str, MoleculeScore] = {}
        with closing(begun.results) as results:
            for index, result in results:
                found[called[index]] = result
                self._record(called[index], result)
                self.failures.note(result)
                if self.failures.is_reached:
                    break
        errors = _errors(found)
        if not errors:
            return
        unscored = [text for text in called if text not in found or text in errors]
        if self.failures.limit is not None:
            self._check_oracle(errors, unscored, begun.numbers)
            self._try_again(unscored, found)
            self.failures.in_a_row = before
            for text in called:
                self.failures.note(found[text])
            errors = _errors(found)
            if self.failures.is_reached and errors:
                why = f"{self.failures.in_a_row} in a row cannot be scored"
                raise self._paused(errors, list(errors), begun.numbers, why)
        self.ledger.fail(errors)
        self._failed |= errors
        for text, error in errors.items():
            logger.warning("%s has no score: %s", text, error)

    def _record(self, smiles: str, result: MoleculeScore) -> None:
        if result.error is None:
            self.ledger.record(smiles, result.score, result.components, result.raw, result.poses)

    def _check_oracle(
        self, errors: Mapping[str, str], unscored: Sequence[str], numbers: Mapping[str, int]
    ) -> None:
        """Pause if the oracle does not score a molecule that it has scored before."""
        known = self.ledger.latest_with(self.objective.names)
        if known is None:
            if self.failures.in_a_row > 1 or self.failures.is_reached:
                raise self._paused(errors, unscored, numbers, "has scored none so far")
            return
        ((_, again),) = list(self.pool.score([known]))
        if again.error is not None:
            why = f"now also on {known!r}, which it has scored before"
            raise self._paused(errors, unscored, numbers, why)

    def _try_again(self, unscored: Sequence[str], found: dict[str, MoleculeScore]) -> None:
        """Try unscored molecules again, in ever smaller batches; one that hung or crashed not."""
        size = self.objective.batch_size
        left = [text for text in unscored if text not in found or not found[text].was_killed]
        while left:
            size = max(1, size // SMALLER)
            with closing(self.pool.score(left, size)) as results:
                for index, result in results:
                    found[left[index]] = result
                    self._record(left[index], result)
            left = [text for text in left if found[text].error and not found[text].was_killed]
            if size == 1:
                return

    def _paused(
        self,
        errors: Mapping[str, str],
        unscored: Sequence[str],
        numbers: Mapping[str, int],
        why: str,
    ) -> OracleFailedError:
        first = next(iter(errors.values()))
        self.ledger.fail({text: PAUSED + errors.get(text, first) for text in unscored})
        self.ledger.checkpoint()
        self.failures.in_a_row = 0
        return oracle_failed(errors, numbers, why)

    @staticmethod
    def _fill(
        row: int, call: Call, reward_B: torch.Tensor, components: dict[str, torch.Tensor]
    ) -> None:
        reward_B[row] = call.score
        components["oracle_call"][row] = call.number
        for name, value in call.components.items():
            components[name][row] = value


def _errors(found: Mapping[str, MoleculeScore]) -> dict[str, str]:
    """Return the reasons of molecules without a score."""
    return {text: result.error for text, result in found.items() if result.error is not None}


@dataclass
class _Begun:
    """Molecules that are being scored.

    Attributes:
        rollout: The completions.
        canonical: Canonical SMILES of each completion; None for invalid strings.
        known: Earlier calls.
        ruled_out: Molecules that score 0 without a call.
        numbers: Molecules with a reserved call, and its number.
        results: Index into `numbers` and score, in the order of completion.
    """

    rollout: Rollout
    canonical: list[str | None]
    known: dict[str, Call]
    ruled_out: set[str]
    numbers: dict[str, int]
    results: Generator[tuple[int, MoleculeScore], None, None]
