"""Stops training when the policy has collapsed on few answers."""

from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override

from triptych.protocols import CountsOracleCalls

_FOR_POLICY = "A larger model.init_args.beta, a smaller learning rate, more completions a prompt"
_FOR_SEARCH = "A smaller model.init_args.sigma or learning rate, a diversity_filter"


class StopOnCollapse(Callback):
    """Stops when a logged number is below a bound several times in a row, and reports why.

    Args:
        monitor: Log key of the number. Training steps log `train/entropy_nats` (of whole
            completions) and `train/distinct_share`; a validation logs, for example,
            `val/held_out_phrasings/mode_entropy_bits`.
        below: The bound.
        patience: Consecutive checks below the bound that stop the run.
        every: `step` checks after each training step, `validation` after each validation.

    Raises:
        ValueError: if nothing logs `monitor`.

    Attributes:
        reason: Why the run was stopped; None if it was not.
    """

    def __init__(
        self,
        monitor: str = "train/distinct_share",
        below: float = 0.1,
        patience: PositiveInt = 20,
        every: Literal["step", "validation"] = "step",
    ) -> None:
        self.monitor = monitor
        self.below = below
        self.patience = patience
        self.every = every
        self.reason: str | None = None
        self._times = 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.every == "step":
            self._look(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.every == "validation" and trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._look(trainer)

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return why the run was stopped, if it was."""
        return [("stopped early", self.reason)] if self.reason else []

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"times": self._times, "reason": self.reason}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._times, self.reason = state_dict["times"], state_dict["reason"]

    def _look(self, trainer: Trainer) -> None:
        if self.monitor not in trainer.callback_metrics:
            known = ", ".join(sorted(trainer.callback_metrics)) or "nothing yet"
            raise ValueError(
                f"StopOnCollapse.monitor is {self.monitor!r}, which nothing logs; there is {known}"
            )
        value = float(trainer.callback_metrics[self.monitor])
        self._times = self._times + 1 if value < self.below else 0
        # Numbers are means over all ranks, so all ranks stop at once.
        if self._times >= self.patience and self.reason is None:
            looks = "training steps" if self.every == "step" else "validations"
            self.reason = (
                f"{self.monitor} was below {self.below:g} in {self._times} {looks} in a row "
                f"({value:.4g} at step {trainer.global_step}): the policy has collapsed"
            )
            is_search = isinstance(trainer.lightning_module, CountsOracleCalls)
            rank_zero_warn(
                f"stopped: {self.reason}. {_FOR_SEARCH if is_search else _FOR_POLICY} or MARA may "
                "prevent this"
            )
            trainer.should_stop = True
