"""The table of results at the end of a run."""

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table
from rich.text import Text
from typing_extensions import override

from triptych.callbacks.report.guard import reports
from triptych.callbacks.run.run_summary import final_metrics
from triptych.callbacks.tracking.run_artifacts import mlflow_loggers
from triptych.callbacks.trainer_parts import callbacks_of
from triptych.protocols import HasHeadline, MeasuresStart, ReplacesMetrics, SummarizesRun

WIDTH_OF_A_FILE = 500
# Rows of metrics, unless all are shown. With the rows of module and files, a table stays below 20.
MOST_ROWS, MOST_TRAINING_ROWS = 13, 2


class SummaryTable(Callback):
    """Prints the final metrics, the rows of module and callbacks, and the run's files.

    The metrics that a module names first (`HasHeadline`) stand first, then those of validation,
    then a few of training. If the module `MeasuresStart`, columns show the values before training
    and the change. Rows come from a module or callback that `SummarizesRun`; those of one that
    `ReplacesMetrics` stand in for the metrics that it names.

    Args:
        all: Show every logged value, such as learning rates and reads of memory slots.
    """

    def __init__(self, all: bool = False) -> None:
        self.all = all

    @override
    @reports
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    @override
    @reports
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            self._print(trainer, pl_module)

    @override
    @reports
    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._print(trainer, pl_module)

    def _print(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        sources: list[Any] = [pl_module, *callbacks_of(trainer)]
        replaced = tuple(
            prefix
            for source in sources
            if isinstance(source, ReplacesMetrics)
            for prefix in source.summarized_metrics
        )
        metrics = {n: v for n, v in final_metrics(trainer).items() if not n.startswith(replaced)}
        first = pl_module.headline_metrics if isinstance(pl_module, HasHeadline) else ()
        names = in_order(metrics, first)
        shown = names if self.all else without_details(names, trainer.progress_bar_metrics)
        before: dict[str, float] = {}
        if isinstance(pl_module, MeasuresStart) and trainer.state.fn == "fit":
            before = pl_module.start_numbers

        table = _table(f"after {trainer.global_step:,} steps", ["before", "after", "change"])
        if not before:
            table = _table(f"after {trainer.global_step:,} steps", [])
        for name in shown:
            table.add_row(name, *_cells(metrics[name], before.get(name), bool(before)))
        padding = [""] if before else []  # the column of values is the second of three
        for source in sources:
            table.add_section()
            if isinstance(source, SummarizesRun):
                for name, value in source.summary_rows():
                    table.add_row(name, *padding, value)
        if len(shown) < len(names):
            count = f"{len(names) - len(shown)} in metrics.csv (--table.all true)"
            table.add_row("more numbers", *padding, count)
        console = Console()
        if not console.is_terminal:  # in a file, wrapped paths could not be searched for
            console = Console(width=WIDTH_OF_A_FILE)
        console.print(table)
        for name, path in _paths(trainer):
            console.print(Text(f"{name:>7}  {path}"), soft_wrap=True)


def in_order(names: Sequence[str] | dict[str, Any], first: Sequence[str]) -> list[str]:
    """Sort log keys: those of a module's headline, validation, training, everything else.

    Args:
        names: Log keys.
        first: Patterns of the headline, as `fnmatch` reads them, the most important one first.

    >>> in_order(["lr/dense", "train/loss", "val/a/f1", "val/a/nll"], ["val/*/nll"])
    ['val/a/nll', 'val/a/f1', 'train/loss', 'lr/dense']
    """

    def place(name: str) -> tuple[int, int, str]:
        headline = next((i for i, p in enumerate(first) if fnmatch(name, p)), len(first))
        kind = next((i for i, p in enumerate(("val/", "train/")) if name.startswith(p)), 2)
        return headline, kind, name

    return sorted(names, key=place)


def without_details(names: Sequence[str], in_the_bar: Sequence[str] | dict[str, Any]) -> list[str]:
    """Keep validation and a few numbers of training: those in the progress bar.

    Args:
        names: Log keys in the order of `in_order`.
        in_the_bar: Log keys in the progress bar.

    >>> without_details(["val/nll", "train/nll", "train/x", "lr/dense"], ["train/nll"])
    ['val/nll', 'train/nll']
    """
    training = [name for name in names if name.startswith("train/") and name in in_the_bar]
    training = training[:MOST_TRAINING_ROWS]
    others = [n for n in names if not n.startswith(("train/", "lr/", "memory/", "background/"))]
    kept = {*others[: MOST_ROWS - len(training)], *training}
    return [name for name in names if name in kept]


def _table(title: str, columns: Sequence[str]) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    table.add_column(overflow="fold")
    for column in columns or ["value"]:
        table.add_column(column, justify="right", overflow="fold")
    return table


def _cells(value: float | None, before: float | None, has_columns: bool) -> list[str]:
    after = "not finite" if value is None else f"{value:,.4g}"
    if not has_columns:
        return [after]
    if before is None:
        return ["", after, ""]
    change = "" if value is None else f"{value - before:+,.4g}"
    return [f"{before:,.4g}", after, change]


def _paths(trainer: Trainer) -> list[tuple[str, str]]:
    run_dir = Path(trainer.default_root_dir)
    names = (
        "config.yaml",
        "metrics.csv",
        "export",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
    )
    found = [name for name in names if (run_dir / name).exists()]
    rows = [("run", str(run_dir)), ("with", ", ".join(found))]
    rows += [("MLflow", logger.status()["uri"]) for logger in mlflow_loggers(trainer)]
    return rows
