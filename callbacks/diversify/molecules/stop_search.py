"""Stops a search when its oracle may be asked no more, or when it finds nothing new to ask."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from triptych.objectives.rewards.molecules.oracle_reward import OracleReward


class StopSearch(Callback):
    """Stops at the end of the oracle's budget, or when samples only repeat, and says which.

    A search whose samples are all known costs no calls and so would never end. For a policy that
    has come down to few answers there is `StopOnCollapse` as well.

    Args:
        patience: Training steps in a row without an oracle call after which to stop.
        max_samples: Most molecules to sample, known ones included; null: no bound.

    Raises:
        ValueError: if a number is below 1, or the module has no `OracleReward`.

    Attributes:
        reason: Why it stopped; None while it has not.
    """

    def __init__(self, patience: int = 20, max_samples: int | None = None) -> None:
        if patience < 1:
            raise ValueError(f"StopSearch.patience is {patience}: set it to at least 1")
        if max_samples is not None and max_samples < 1:
            raise ValueError(f"StopSearch.max_samples is {max_samples}: set it to at least 1")
        self.patience = patience
        self.max_samples = max_samples
        self.reason: str | None = None
        self._calls = 0
        self._steps_without = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not isinstance(getattr(pl_module, "reward", None), OracleReward):
            raise ValueError(
                "StopSearch watches the budget of an oracle, but model.init_args.reward is no "
                "triptych.objectives.rewards.molecules.oracle_reward.OracleReward: leave the "
                "callback out"
            )

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        calls: int = pl_module.oracle_calls  # the same on every process
        budget: int = pl_module.reward.budget
        samples: int = pl_module.generated_samples
        self._steps_without = 0 if calls > self._calls else self._steps_without + 1
        self._calls = max(self._calls, calls)
        if self.reason is not None:
            return
        if calls >= budget:
            self.reason = f"the budget of {budget:,} oracle calls is spent"
            rank_zero_info(f"stopped: {self.reason}")
        elif self._steps_without >= self.patience:
            self.reason = (
                f"no molecule of the last {self._steps_without} training steps was new: samples "
                f"only repeat, after {calls:,} of {budget:,} oracle calls"
            )
            rank_zero_warn(
                f"stopped: {self.reason}. A smaller model.init_args.sigma, a diversity_filter or "
                "MARA may keep it from that"
            )
        elif self.max_samples is not None and samples >= self.max_samples:
            self.reason = (
                f"{samples:,} molecules were sampled (max_samples), for {calls:,} of {budget:,} "
                "oracle calls"
            )
            rank_zero_info(f"stopped: {self.reason}")
        if self.reason is not None:
            trainer.should_stop = True

    def summary_rows(self) -> list[tuple[str, str]]:
        """Why the search ended, if this ended it."""
        return [("search ended", self.reason)] if self.reason else []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"steps_without": self._steps_without, "calls": self._calls}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps_without, self._calls = state_dict["steps_without"], state_dict["calls"]
