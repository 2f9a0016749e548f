"""The reward of molecules: an oracle with a budget and a ledger of its calls.

SMILES -> canonical -> ledger: known?  yes -> its score, without a call
                                       no  -> reserve a call -> scoring pool -> ledger

With `num_workers` the pool scores while the policy computes log-probabilities.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from triptych.models.diversify.molecules.molecule import canonical_smiles
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.base import Reward, Scores
from triptych.objectives.rewards.molecules.objective import MoleculeObjective, MoleculeScore
from triptych.objectives.rewards.molecules.oracle_ledger import Call, OracleLedger
from triptych.objectives.rewards.molecules.properties import DrugLikeness
from triptych.objectives.rewards.molecules.scoring_pool import ScoringPool


class OracleReward(Reward):
    """Scores each different molecule once, until the budget is spent.

    A string that is no valid molecule has reward 0 and costs no call. A molecule on which a
    component fails, crashes or hangs costs a call and has reward 0. Once `is_spent`, molecules that
    are not in the ledger have no reward (nan, with their rows in `Scores.over_budget`): training
    should stop.

    Args:
        objective: Scores a molecule.
        budget: Maximum number of oracle calls, that is of different molecules.
        ledger: SQLite file of the calls; null: in memory. A resumed run continues with the calls in
            the file, and so does another run of the same objective.
        num_workers: Processes that score; 0 scores in this process, without a time limit.
        time_limit_s: Seconds per molecule.
        keep_stereo: Whether molecules that differ only in stereochemistry count as different.
        seed: Seed of the run, written to the ledger with each call; null: a search writes its own
            seed, other runs write 0.

    Raises:
        ValueError: If the budget is below 1 or a setting is out of range; when scoring begins, if
            the ledger belongs to another objective.
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
    ) -> None:
        if budget < 1:
            raise ValueError(
                f"budget is {budget}: an oracle that may not be called scores nothing; set it to "
                "at least 1"
            )
        self.objective, self.budget, self.seed = objective, budget, seed
        self.keep_stereo = keep_stereo
        self.ledger_path = ledger
        self.pool = ScoringPool(objective, num_workers, time_limit_s)
        self._ledger: OracleLedger | None = None
        self._begun: _Begun | None = None

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
            path = None if self.ledger_path is None else Path(self.ledger_path)
            self._ledger = OracleLedger(path, description)
        return self._ledger

    @property
    def num_calls(self) -> int:
        """Calls made, including those of earlier runs with this ledger."""
        return len(self.ledger)

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
        canonical, known = begun.canonical, begun.known
        for index, result in begun.results:
            called = begun.called[index]
            self.ledger.record(called, result.score, result.components, result.error)
        known |= self.ledger.look_up(begun.called)
        reward_B = torch.zeros(len(rollout), dtype=torch.float32)
        names = [*self.objective.names, "oracle_call"]
        components = {
            name: torch.full((len(rollout),), math.nan, dtype=torch.float32) for name in names
        }
        errors: dict[int, str] = {}
        over_budget: set[int] = set()
        for row, text in enumerate(canonical):
            if text is None:
                components["oracle_call"][row] = 0
            elif text in known:
                self._fill(row, known[text], reward_B, components)
            else:
                reward_B[row] = math.nan
                errors[row] = f"the budget of {self.budget} oracle calls is spent"
                over_budget.add(row)
        return Scores(reward_B, components, errors, over_budget)

    def close(self) -> None:
        """Stop the workers and close the ledger; both restart at the next use."""
        self.pool.close()
        if self._ledger is not None and self._ledger.path is not None:
            self._ledger.close()
            self._ledger = None

    def _begin(self, rollout: Rollout) -> "_Begun":
        """Look up known molecules and start the calls that the budget allows."""
        canonical = [canonical_smiles(text, self.keep_stereo) for text in rollout.texts]
        different = list(dict.fromkeys(text for text in canonical if text is not None))
        known = self.ledger.look_up(different)
        new = [text for text in different if text not in known]
        called = list(self.ledger.reserve(new, self.budget, self.seed or 0))
        return _Begun(rollout, canonical, known, called, self.pool.score(called))

    @staticmethod
    def _fill(
        row: int, call: Call, reward_B: torch.Tensor, components: dict[str, torch.Tensor]
    ) -> None:
        reward_B[row] = call.score
        components["oracle_call"][row] = call.number
        for name, value in call.components.items():
            components[name][row] = value


@dataclass
class _Begun:
    """Molecules that are being scored.

    Attributes:
        rollout: The completions.
        canonical: Canonical SMILES of each completion; None for invalid strings.
        known: Earlier calls.
        called: Molecules with a reserved call.
        results: Index into `called` and score, in the order of completion.
    """

    rollout: Rollout
    canonical: list[str | None]
    known: dict[str, Call]
    called: list[str]
    results: Iterator[tuple[int, MoleculeScore]]
