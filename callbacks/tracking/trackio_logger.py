"""A Lightning logger for Trackio, which has none of its own."""

import importlib
import importlib.util
from argparse import Namespace
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.logger import _convert_params
from lightning.pytorch.loggers import Logger
from lightning.pytorch.loggers.logger import rank_zero_experiment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override


class TrackioLogger(Logger):
    """Logs metrics, parameters, tables and images to Trackio; ``trackio show`` opens its pages.

    Args:
        project: Project in Trackio.
        name: Name of the run; null: Trackio's choice.
        space_id: Space of the Hugging Face hub that shows the project; null: this machine.

    Raises:
        ModuleNotFoundError: if trackio is not installed.
    """

    def __init__(
        self, project: str = "triptych", name: str | None = None, space_id: str | None = None
    ) -> None:
        super().__init__()
        if importlib.util.find_spec("trackio") is None:
            raise ModuleNotFoundError(
                "trackio is not installed. Install it with `pip install trackio`, or leave "
                "TrackioLogger out of --trainer.logger."
            )
        self._settings = {"project": project, "name": name, "space_id": space_id}
        self._run: Any = None

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        """Trackio's run, which starts when it is first asked for."""
        if self._run is None:
            trackio = _trackio()

            given = {key: value for key, value in self._settings.items() if value is not None}
            self._run = trackio.init(**given, embed=False)
        return self._run

    @property
    @override
    def name(self) -> str | None:
        return self._settings["project"]

    @property
    @override
    def version(self) -> str | None:
        return self._settings["name"] if self._run is None else str(self._run.name)

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.experiment.log(dict(metrics), step=step)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        self.experiment.config.update(
            {name: str(value) for name, value in _convert_params(params).items()}
        )

    @rank_zero_only
    def log_table(
        self, key: str, columns: list[str], data: list[list[Any]], step: int | None = None
    ) -> None:
        """Log a table."""
        trackio = _trackio()

        rows = [dict(zip(columns, row, strict=True)) for row in data]
        self.experiment.log({key: trackio.Table(data=rows)}, step=step)

    @rank_zero_only
    def log_image(self, key: str, images: list[str], step: int | None = None) -> None:
        """Log images by their paths."""
        trackio = _trackio()

        for path in images:
            self.experiment.log({key: trackio.Image(path)}, step=step)

    @rank_zero_only
    def log_file(self, path: str) -> None:
        """Keep a copy of a file with the project."""
        trackio = _trackio()

        trackio.save(path, project=self._settings["project"])

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            trackio = _trackio()

            trackio.finish()


def _trackio() -> Any:
    """Import the package when it is needed: it is no dependency of Triptych."""
    return importlib.import_module("trackio")
