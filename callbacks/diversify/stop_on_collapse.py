"""Stops a training whose policy has come down to few answers."""

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from typing_extensions import override


class StopOnCollapse(Callback):
    """Stops when a logged number has been below a bound several times in a row, and says why.

    Args:
        monitor: The number: of training steps such as `train/entropy_nats` (of whole completions)
            or `train/distinct_share`, or of a validation such as
            `val/held_out_phrasings/mode_entropy_bits`.
        below: The bound.
        patience: How often in a row it has to be below.
        every: `step` looks after each training step, `validation` after each validation.

    Raises:
        ValueError: if `patience` is not positive, or there is no such number when it is looked for.

    Attributes:
        reason: Why it stopped; None while it has not.
    """

    def __init__(
        self,
        monitor: str = "train/distinct_share",
        below: float = 0.1,
        patience: int = 20,
        every: Literal["step", "validation"] = "step",
    ) -> None:
        if patience < 1:
            raise ValueError(f"StopOnCollapse.patience is {patience}: set it to at least 1")
        if every not in ("step", "validation"):
            raise ValueError(f"StopOnCollapse.every is {every!r}: choose step or validation")
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
        """Why the run was stopped, if it was."""
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
        # Numbers are means over all ranks, so that all of them stop at once.
        if self._times >= self.patience and self.reason is None:
            looks = "training steps" if self.every == "step" else "validations"
            self.reason = (
                f"{self.monitor} was below {self.below:g} in {self._times} {looks} in a row "
                f"({value:.4g} at step {trainer.global_step}): the policy has collapsed"
            )
            rank_zero_warn(
                f"stopped: {self.reason}. A larger model.init_args.beta, a smaller learning rate, "
                "more completions a prompt or MARA may keep it from that"
            )
            trainer.should_stop = True
