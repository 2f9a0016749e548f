"""The reward of molecules: an oracle with a budget, whose every call is written down.

SMILES -> canonical -> ledger: known?  yes -> its score, for nothing
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

    A string that is no molecule is worth 0 and costs nothing. A molecule that its components cannot
    score, crash on or hang on costs a call and is worth 0. Once `is_spent`, molecules that are not
    in the ledger have no reward (nan): training should stop.

    Args:
        objective: How molecules are scored.
        budget: Most oracle calls, which is most different molecules.
        ledger: SQLite file of the calls; null: in memory. A run that goes on with the same file
            goes on with the same books, and so does another run of the same objective.
        num_workers: Processes that score; 0 scores in this one, without a time limit.
        time_limit_s: Seconds a molecule may take.
        keep_stereo: Whether molecules that differ in stereochemistry alone are different.
        seed: Of the run, written beside each call; null: a search writes its own, others 0.

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
        """Drug-likeness with a few calls."""
        return cls(MoleculeObjective([DrugLikeness()]), budget=10)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_ledger": None, "_begun": None}

    @property
    def ledger(self) -> OracleLedger:
        """The books, opened when first asked for."""
        if self._ledger is None:
            description = {"keep_stereo": self.keep_stereo, **self.objective.describe()}
            path = None if self.ledger_path is None else Path(self.ledger_path)
            self._ledger = OracleLedger(path, description)
        return self._ledger

    @property
    def num_calls(self) -> int:
        """Calls made, by earlier runs with this ledger too."""
        return len(self.ledger)

    @property
    def is_spent(self) -> bool:
        """Whether the budget is spent: no new molecule will be scored."""
        return self.num_calls >= self.budget

    def prepare(self, device: torch.device) -> None:
        """Open the ledger."""
        _ = self.ledger

    def begin(self, rollout: Rollout) -> None:
        """Have the workers begin, if there are any; the ledger hears of it when scores are due."""
        if self.pool.num_workers:
            self.prepare(rollout.token_ids_BT.device)
            self._begun = self._begin(rollout)

    def score(self, rollout: Rollout) -> Scores:
        """Score molecules.

        Returns:
            Rewards; in `components`, each component (nan where it was not computed) and
            `oracle_call`, the number of the call that scored the molecule, 0 for what is none.
        """
        begun, self._begun = self._begun, None
        if begun is None or begun.rollout is not rollout:
            begun = self._begin(rollout)
        canonical, known = begun.canonical, begun.known
        for index, result in begun.results:
            called = begun.called[index]
            self.ledger.record(called, result.score, result.components, result.error)
        known |= self.ledger.look_up(begun.called)
        reward_B = torch.zeros(len(rollout))
        names = [*self.objective.names, "oracle_call"]
        components = {name: torch.full((len(rollout),), math.nan) for name in names}
        errors: dict[int, str] = {}
        for row, text in enumerate(canonical):
            if text is None:
                components["oracle_call"][row] = 0
            elif text in known:
                self._fill(row, known[text], reward_B, components)
            else:
                reward_B[row] = math.nan
                errors[row] = f"the budget of {self.budget} oracle calls is spent"
        return Scores(reward_B, components, errors)

    def close(self) -> None:
        """End the workers and close the ledger; both start anew when needed."""
        self.pool.close()
        if self._ledger is not None and self._ledger.path is not None:
            self._ledger.close()
            self._ledger = None

    def _begin(self, rollout: Rollout) -> "_Begun":
        """Look molecules up, and make the calls that the budget allows."""
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
        rollout: Who asked.
        canonical: Canonical SMILES of each completion; None for what is no molecule.
        known: Calls made before.
        called: Molecules whose calls are reserved.
        results: Index into `called` and score, as they come.
    """

    rollout: Rollout
    canonical: list[str | None]
    known: dict[str, Call]
    called: list[str]
    results: Iterator[tuple[int, MoleculeScore]]
