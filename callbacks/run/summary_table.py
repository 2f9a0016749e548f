"""The table of results at the end of a run."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from triptych.callbacks.run.run_summary import final_metrics
from triptych.callbacks.tracking.run_artifacts import mlflow_loggers
from triptych.callbacks.trainer_parts import callbacks_of
from triptych.protocols import ReplacesMetrics, SummarizesRun

WIDTH_OF_A_FILE = 500


class SummaryTable(Callback):
    """Prints every final metric, the rows of module and callbacks, and the run's files.

    Rows come from a module or callback that `SummarizesRun`; those of one that `ReplacesMetrics`
    stand in for the metrics that it names.
    """

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._print(trainer, pl_module)

    @override
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        table = Table(
            title=f"after {trainer.global_step:,} steps", title_justify="left", show_header=False
        )
        table.add_column(overflow="fold")
        table.add_column(justify="right", overflow="fold")
        sources = (pl_module, *callbacks_of(trainer))
        replaced = tuple(
            prefix
            for source in sources
            if isinstance(source, ReplacesMetrics)
            for prefix in source.summarized_metrics
        )
        for name, value in final_metrics(trainer).items():
            if not name.startswith(replaced):
                table.add_row(name, "not finite" if value is None else f"{value:,.4g}")
        for source in sources:
            table.add_section()
            if isinstance(source, SummarizesRun):
                for row in source.summary_rows():
                    table.add_row(*row)
        table.add_section()
        for name, path in _paths(trainer):
            table.add_row(name, Text(path, justify="left"))
        console = Console()
        if not console.is_terminal:  # in a file, wrapped paths could not be searched for
            console = Console(width=WIDTH_OF_A_FILE)
        console.print(table)


def _paths(trainer: Trainer) -> list[tuple[str, str]]:
    run_dir = Path(trainer.default_root_dir)
    names = (
        "config.yaml",
        "metrics.csv",
        "export",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    )
    rows = [
        ("run", str(run_dir)),
        ("with", "\n".join(name for name in names if (run_dir / name).exists())),
    ]
    rows += [("MLflow", logger.status()["uri"]) for logger in mlflow_loggers(trainer)]
    return rows
