"""The composed configuration of a run, kept with the run and with its tracker."""

from pathlib import Path

from jsonargparse import Namespace
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import LightningArgumentParser, SaveConfigCallback
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file
from triptych.callbacks.tracking.code_version import code_version
from triptych.callbacks.tracking.mlflow_tracking import MLflowTracking

CONFIG_FILE = "config.yaml"


class SaveConfig(SaveConfigCallback):
    """Writes ``config.yaml`` into the run's directory and hands it to MLflow as an artifact.

    Lightning's own asks the first logger for a folder, which MLflow with a database has not, and
    MLflow cuts parameters off at 250 characters, so that an artifact is what can be run again.

    Args:
        parser: Parser of the subcommand.
        config: What the run was built from, with every path filled in.
        composed: What the user asked for, as YAML that runs as it is.
    """

    def __init__(self, parser: LightningArgumentParser, config: Namespace, composed: str) -> None:
        super().__init__(parser, config, save_to_log_dir=False)
        self.composed = composed

    @override
    def save_config(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        with atomic_file(Path(trainer.default_root_dir) / CONFIG_FILE) as partial:
            partial.write_text(self.composed)
        fingerprint = getattr(trainer.datamodule, "fingerprint", None)
        tags = {
            "code_version": code_version() or "unknown",
            "data_fingerprint": fingerprint() if fingerprint else "unknown",
            "resumed_from": str(trainer.ckpt_path) if trainer.ckpt_path else "",
        }
        for logger in trainer.loggers:
            if isinstance(logger, MLflowTracking):
                logger.log_text(self.composed, CONFIG_FILE)
                logger.log_tags({name: value for name, value in tags.items() if value})
