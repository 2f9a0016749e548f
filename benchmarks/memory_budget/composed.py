"""An experiment's settings, composed as the command line composes them, without running it."""

import re
from pathlib import Path
from typing import Any

import yaml
from typing_extensions import override

from triptych.cli import TriptychCLI


class _Composed(TriptychCLI):
    """Parses, and does nothing else."""

    @override
    def before_instantiate_classes(self) -> None:
        self.composed = yaml.safe_load(self._composed_yaml(self.config[self.subcommand]))

    @override
    def instantiate_classes(self) -> None:
        pass

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        pass


def composed_settings(config: Path, words: list[str]) -> dict[str, Any]:
    """Return all settings of an experiment, defaults included.

    Args:
        config: Its file.
        words: Further words of the command line, such as ``["--config", "gpu.yaml"]``.
    """
    settings: dict[str, Any] = _Composed(["fit", "--config", str(config), *words]).composed
    return settings


def named_card(config: Path) -> int | None:
    """Return the GiB of the card that a configuration's first comment names: "GPU of 80 GB"."""
    found = re.search(r"(?i)GPUs? of (\d+) GB", config.read_text())
    return int(found[1]) if found else None
