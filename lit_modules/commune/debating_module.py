"""A module whose validation is debates, and the table of what they came to."""

from lightning.pytorch import LightningModule

from triptych.datamodules.commune.debate_task import DebateTask
from triptych.lit_modules.commune.debate import Debate
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.rank_sums import sum_over_ranks


class DebatingModule(LightningModule):
    """Evaluates agents in debates; a subclass says which, and what is learned.

    Attributes:
        debate: Asks the agents; made in `setup`.
        evaluation: Collects a validation epoch; made in `setup`.
    """

    debate: Debate
    evaluation: DebateEvaluation

    def __init__(self) -> None:
        super().__init__()
        self._summary: list[tuple[str, str]] = []

    @property
    def task(self) -> DebateTask:
        """What the agents are asked."""
        task: DebateTask = data_of(self).task
        return task

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self.evaluation.reset()

    def debated_values(self) -> dict[str, float]:
        """Accuracies, consensus and bytes of the epoch, all ranks together."""
        return self.evaluation.compute(lambda counts: sum_over_ranks(self.trainer, counts))

    def report(self, values: dict[str, float], table: list[tuple[str, str]]) -> None:
        """Log the values, and keep the table for the end of the run."""
        for name, value in values.items():
            self.log(name, value, sync_dist=True)
        self._summary = table

    @property
    def summarized_metrics(self) -> tuple[str, ...]:
        """The table below says the same."""
        return ("val/",)

    def summary_rows(self) -> list[tuple[str, str]]:
        """The table of accuracies, with controls where there are any."""
        return self._summary
