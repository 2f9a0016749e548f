"""The composed configuration of a run, kept in its directory and with its tracker."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.code_version import code_version
from triptych.callbacks.tracking.run_artifacts import mlflow_loggers
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.protocols import HasFingerprint

CONFIG_FILE = "config.yaml"


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's directory and logs it with MLflow as an artifact.

    Lightning's callback asks the first logger for a folder, and MLflow with a database has none.
    MLflow truncates parameters at 250 characters, so only an artifact can be run again.

    Args:
        parser: Parser of the subcommand.
        config: The settings from which the run was built, with every path filled in.
        composed: The user's settings as YAML that can be run again.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, composed: str) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.composed = composed

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with atomic_file(Path(trainer.default_root_dir) / CONFIG_FILE) as partial:
            partial.write_text(self.composed)
        data = datamodule_of(trainer)
        tags = {
            "code_version": code_version() or "unknown",
            "data_fingerprint": data.fingerprint()
            if isinstance(data, HasFingerprint)
            else "unknown",
            "resumed_from": str(trainer.ckpt_path) if trainer.ckpt_path else "",
        }
        for logger in mlflow_loggers(trainer):
            logger.log_text(self.composed, CONFIG_FILE)
            logger.log_tags({name: value for name, value in tags.items() if value})
