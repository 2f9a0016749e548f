"""What came out of a run, as a table at its end."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from triptych.callbacks.run.run_summary import final_metrics
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking

WIDTH_OF_A_FILE = 500


class SummaryTable(Callback):
    """Prints every final metric, what module and callbacks add to them, and where things are.

    The module and every callback may have ``summary_rows() -> list[tuple[str, str]]``, and
    ``summarized_metrics``: beginnings of the names of metrics that these rows stand for.
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
        sources = (pl_module, *trainer.callbacks)
        told = tuple(n for source in sources for n in getattr(source, "summarized_metrics", ()))
        for name, value in final_metrics(trainer).items():
            if not name.startswith(told):
                table.add_row(name, "not finite" if value is None else f"{value:,.4g}")
        for source in sources:
            table.add_section()
            for row in getattr(source, "summary_rows", list)():
                table.add_row(*row)
        table.add_section()
        for name, path in _paths(trainer):
            table.add_row(name, Text(path, justify="left"))
        console = Console()
        if not console.is_terminal:  # a file has no width: wrapped paths could not be searched for
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
    for logger in trainer.loggers:
        if isinstance(logger, MLflowTracking):
            rows.append(("MLflow", logger.status()["uri"]))
    return rows
