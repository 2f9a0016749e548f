"""Base of modules that validate agents in debates."""

from triptych.datamodules.commune.debate_task import DebateTask
from triptych.lit_modules.commune.debate import Debate
from triptych.lit_modules.commune.debate_evaluation import DebateEvaluation
from triptych.lit_modules.commune.step_draws import DrawsByStep
from triptych.lit_modules.trainer_parts import data_of
from triptych.metrics.rank_sums import sum_over_ranks


class DebatingModule(DrawsByStep):
    """Evaluates agents in debates; a subclass provides the agents and the training.

    Attributes:
        debate: The agents with the task; made in `setup`.
        evaluation: Counts of a validation epoch; made in `setup`.
    """

    debate: Debate
    evaluation: DebateEvaluation

    headline_metrics = ("val/*accuracy*",)

    def __init__(self) -> None:
        super().__init__()
        self._summary: list[tuple[str, str]] = []

    @property
    def task(self) -> DebateTask:
        """The debate task of the datamodule."""
        task: DebateTask = data_of(self).task
        return task

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self.evaluation.reset()

    def debated_values(self) -> dict[str, float]:
        """Return accuracies, consensus and bytes of the epoch, over all ranks."""
        return self.evaluation.compute(lambda counts: sum_over_ranks(self.trainer, counts))

    def report(self, values: dict[str, float], table: list[tuple[str, str]]) -> None:
        """Log the values and keep the table for the end of the run."""
        for name, value in values.items():
            self.log(name, value, sync_dist=True)
        self._summary = table

    @property
    def summarized_metrics(self) -> tuple[str, ...]:
        """Prefixes of the metrics that `summary_rows` already shows."""
        return ("val/",)

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return the table of accuracies, with controls where there are any."""
        return self._summary
