"""The composed configuration of a run, kept in its directory and with its loggers."""

from pathlib import Path

import yaml
from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.code_version import code_version
from triptych.callbacks.tracking.run_artifacts import log_dataset, log_file, log_params, log_tags
from triptych.callbacks.tracking.run_parameters import plain, run_parameters
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.protocols import HasFingerprint

CONFIG_FILE = "config.yaml"
PANELS = ("remember", "diversify", "commune")


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's directory, and describes the run to its loggers.

    They get the file, as parameters what differs from the defaults, and tags: subcommand, panel,
    experiment, seed, version of the code, fingerprint of the data. Lightning's callback asks the
    first logger for a folder, and MLflow with a database has none.

    Args:
        parser: Parser of the subcommand.
        config: The settings from which the run was built, with every path filled in.
        composed: The user's settings as YAML that can be run again.
        experiment: Group of the run.
    """

    def __init__(
        self,
        parser: LightningArgumentParser,
        config: Namespace,
        composed: str,
        experiment: str | None = None,
    ) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.composed = composed
        self.experiment = experiment

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        path = Path(trainer.default_root_dir) / CONFIG_FILE
        with atomic_file(path) as partial:
            partial.write_text(self.composed)
        settings = yaml.safe_load(self.composed)
        defaults = plain(self.parser.get_defaults())
        log_params(trainer, run_parameters(settings, defaults))
        data = datamodule_of(trainer)
        fingerprint = data.fingerprint() if isinstance(data, HasFingerprint) else None
        tags = {
            "subcommand": trainer.state.fn.value if trainer.state.fn else stage,
            "panel": panel_of(type(pl_module)),
            "experiment": self.experiment,
            "seed": settings.get("seed_everything"),
            "code_version": code_version() or "unknown",
            "data_fingerprint": fingerprint or "unknown",
            "resumed_from": trainer.ckpt_path,
        }
        log_tags(trainer, {name: str(value) for name, value in tags.items() if value is not None})
        if data is not None:
            source = (settings.get("data") or {}).get("class_path", type(data).__qualname__)
            log_dataset(trainer, type(data).__name__, fingerprint or "unknown", str(source))
        log_file(trainer, path)


def panel_of(module: type) -> str | None:
    """Return the panel whose package holds a module's class, or one that the class inherits from.

    >>> from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
    >>> panel_of(MemoryPretraining)
    'remember'
    """
    for parent in module.__mro__:
        for part in parent.__module__.split("."):
            if part in PANELS:
                return part
    return None
