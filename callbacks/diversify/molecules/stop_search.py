"""Stops a molecule search when its budget is spent or it samples nothing new."""

from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from typing_extensions import override

from triptych.callbacks.diversify.molecules.molecule_report import oracle_of
from triptych.protocols import CountsOracleCalls, missing


class StopSearch(Callback):
    """Stops when the oracle's budget is spent or samples only repeat, and reports which.

    Known molecules cost no oracle calls, so a search that repeats itself would never end.
    (`StopOnCollapse` watches the diversity of a policy's answers.)

    Args:
        patience: Consecutive training steps without an oracle call that stop the search.
        max_samples: Largest number of samples, known molecules included; null: no bound.

    Raises:
        ValueError: if the module has no `OracleReward`, or is no `CountsOracleCalls`.

    Attributes:
        reason: Why the search was stopped; None if it was not.
    """

    def __init__(self, patience: PositiveInt = 20, max_samples: PositiveInt | None = None) -> None:
        self.patience = patience
        self.max_samples = max_samples
        self.reason: str | None = None
        self._calls = 0
        self._steps_without = 0

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        oracle_of(pl_module, "StopSearch")
        if not isinstance(pl_module, CountsOracleCalls):
            raise missing(CountsOracleCalls, pl_module, "StopSearch")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, CountsOracleCalls)
        calls, samples = pl_module.oracle_calls, pl_module.generated_samples
        budget = oracle_of(pl_module, "StopSearch").budget
        # Calls only grow; fewer than before are those of the next stage of a staged search.
        self._steps_without = 0 if calls != self._calls else self._steps_without + 1
        self._calls = calls
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
                "MARA may prevent this"
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
        """Return why the search was stopped, if it was."""
        return [("search ended", self.reason)] if self.reason else []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"steps_without": self._steps_without, "calls": self._calls}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._steps_without, self._calls = state_dict["steps_without"], state_dict["calls"]
