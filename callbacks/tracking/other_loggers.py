"""Tables, images, files and tags for the loggers of other libraries.

Lightning has an interface for metrics and parameters, and none for the rest. A logger is asked for
what it can do, not for its class: one with the methods of `WandbLogger` needs no entry here.
"""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger, Logger

log = logging.getLogger(__name__)

Cell = Any  # a plain JSON value
LONGEST_TEXT = 100_000  # characters of a file that TensorBoard shows


class Receiver:
    """What a logger can take beside metrics and parameters; this one takes tags as parameters.

    No failure of another library stops the run. Each kind of failure is said once.

    Args:
        logger: One of the trainer's loggers.
    """

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    def tags(self, tags: Mapping[str, str]) -> None:
        """Take tags of the run."""
        self._try(
            self.logger.log_hyperparams, {f"tags/{name}": value for name, value in tags.items()}
        )

    def table(
        self, name: str, columns: Sequence[str], data: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Take a table."""

    def image(self, name: str, path: Path, step: int) -> None:
        """Take a PNG file."""

    def file(self, path: Path, run_dir: Path) -> None:
        """Take another file of the run's directory."""

    def _try(self, send: Callable[..., Any], *args: Any, **options: Any) -> None:
        try:
            send(*args, **options)
        except Exception as error:
            kind = (type(self.logger).__name__, type(error).__name__)
            if kind not in _SAID:
                _SAID.add(kind)
                log.warning("%s did not take a part of the run: %s: %s", *kind, error)


_SAID: set[tuple[str, str]] = set()


class WandbReceiver(Receiver):
    """A logger with ``log_table`` and ``log_image``, such as `WandbLogger`."""

    def table(
        self, name: str, columns: Sequence[str], data: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Log a table; lists and mappings in it as JSON."""
        rows = [[_plain(cell) for cell in row] for row in data]
        self._try(self.logger.log_table, name, columns=list(columns), data=rows, step=step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image."""
        self._try(self.logger.log_image, name, [str(path)], step=step)

    def file(self, path: Path, run_dir: Path) -> None:
        """Save a file with the run."""
        if hasattr(self.logger, "log_file"):
            self._try(self.logger.log_file, str(path))
        else:
            self._try(
                self.logger.experiment.save,
                str(path.resolve()),
                base_path=str(run_dir.resolve()),
                policy="now",
            )


class TensorBoardReceiver(Receiver):
    """A logger whose experiment is a ``SummaryWriter``."""

    def table(
        self, name: str, columns: Sequence[str], data: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Log a table as Markdown."""
        lines = [columns, ["---"] * len(columns), *data]
        text = "\n".join("| " + " | ".join(_one_line(cell) for cell in row) + " |" for row in lines)
        self._try(self.logger.experiment.add_text, name, text, step)

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image."""
        from matplotlib.image import imread

        pixels_HWC = imread(path)[..., :3]
        self._try(self.logger.experiment.add_image, name, pixels_HWC, step, dataformats="HWC")

    def file(self, path: Path, run_dir: Path) -> None:
        """Log the text of a file."""
        text = path.read_text(errors="replace")[:LONGEST_TEXT]
        self._try(self.logger.experiment.add_text, path.name, f"```\n{text}\n```")


class MLflowReceiver(Receiver):
    """Lightning's `MLFlowLogger`, or another logger over an ``MlflowClient``."""

    def tags(self, tags: Mapping[str, str]) -> None:
        """Set tags of the run."""
        for name, value in tags.items():
            self._try(self.logger.experiment.set_tag, self.logger.run_id, name, value)

    def table(
        self, name: str, columns: Sequence[str], data: Sequence[Sequence[Cell]], step: int
    ) -> None:
        """Log a table."""
        table = {column: [row[i] for row in data] for i, column in enumerate(columns)}
        log_table = self.logger.experiment.log_table
        self._try(log_table, self.logger.run_id, table, f"{name}/step_{step}.json")

    def image(self, name: str, path: Path, step: int) -> None:
        """Log an image as an artifact."""
        folder = Path(name).parent.as_posix().removeprefix(".") or None
        self._try(self.logger.experiment.log_artifact, self.logger.run_id, str(path), folder)

    def file(self, path: Path, run_dir: Path) -> None:
        """Log a file as an artifact."""
        self._try(self.logger.experiment.log_artifact, self.logger.run_id, str(path))


def receiver_of(logger: Logger) -> Receiver | None:
    """Return what takes tables, images, files and tags for a logger; None for files of numbers."""
    if isinstance(logger, CSVLogger):
        return None
    if hasattr(logger, "log_table") and hasattr(logger, "log_image"):
        return WandbReceiver(logger)
    experiment = getattr(logger, "experiment", None)
    if hasattr(type(logger), "run_id") and hasattr(experiment, "log_artifact"):
        return MLflowReceiver(logger)
    if hasattr(experiment, "add_text"):
        return TensorBoardReceiver(logger)
    return Receiver(logger)


def _plain(cell: Cell) -> Cell:
    if cell is None or isinstance(cell, str | int | float | bool):
        return cell
    return json.dumps(cell, ensure_ascii=False)


def _one_line(cell: Cell) -> str:
    return str(_plain(cell)).replace("|", "\\|").replace("\n", " ")
