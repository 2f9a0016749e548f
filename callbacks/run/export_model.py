"""The trained model as a folder that `transformers` and `init_from` can load."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_folder, recover_folder
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.models.progress_bars import no_progress_bars
from triptych.protocols import Exports, HasTokenizer, HoldsModel, SavesPretrained


class ExportModel(Callback):
    """Saves the module's model and the data's tokenizer with ``save_pretrained``.

    ``export/`` in the run's directory holds the best model if ``checkpoint.monitor`` names a
    metric, and the last one otherwise. It is replaced as a whole.

    The model is that of a `HoldsModel`. A module that `Exports` gives other weights for it, such as
    merged adapters. The tokenizer is that of a datamodule which `HasTokenizer`.
    """

    def __init__(self) -> None:
        self._best_score: float | None = None

    @property
    @override
    def state_key(self) -> str:
        return "ExportModel"

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        folder = Path(trainer.default_root_dir) / "export"
        if trainer.is_global_zero:
            recover_folder(folder)
            if not _saves(pl_module):
                rank_zero_info(
                    f"ExportModel exports nothing: {type(pl_module).__name__} has no `model` "
                    "(triptych.protocols.HoldsModel) with `save_pretrained`"
                )
        trainer.strategy.barrier("ExportModel")
        if not folder.is_dir():
            self._best_score = None  # resumed in a new directory, which has no best model yet

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        checkpoint = trainer.checkpoint_callback
        if trainer.sanity_checking or not isinstance(checkpoint, Checkpoint | ModelCheckpoint):
            return
        if checkpoint.monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[checkpoint.monitor])
        smaller_is_better = checkpoint.mode == "min"
        best = self._best_score
        if best is None or (score < best if smaller_is_better else score > best):
            self._best_score = score
            self._export(trainer, pl_module)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._best_score is None:
            self._export(trainer, pl_module)

    @override
    def state_dict(self) -> dict[str, float | None]:
        return {"best_score": self._best_score}

    @override
    def load_state_dict(self, state_dict: dict[str, float | None]) -> None:
        self._best_score = state_dict["best_score"]

    def _export(self, trainer: Trainer, pl_module: LightningModule) -> None:
        model = _saves(pl_module)
        if model is None:
            return
        options: dict[str, Any] = {}
        if isinstance(trainer.strategy, FSDPStrategy):  # gathers the shards: every rank takes part
            state = trainer.strategy.lightning_module_state_dict()
            options["state_dict"] = {name.removeprefix("model."): t for name, t in state.items()}
        elif isinstance(pl_module, Exports):
            options["state_dict"] = pl_module.export_state_dict()
        if trainer.is_global_zero:
            with atomic_folder(Path(trainer.default_root_dir) / "export") as folder:
                with no_progress_bars():
                    model.save_pretrained(folder, **options)
                data = datamodule_of(trainer)
                if isinstance(data, HasTokenizer) and data.tokenizer is not None:
                    data.tokenizer.save_pretrained(folder)


def _saves(pl_module: LightningModule) -> SavesPretrained | None:
    """Return the module's model if it can be exported."""
    model = pl_module.model if isinstance(pl_module, HoldsModel) else None
    return model if isinstance(model, SavesPretrained) else None
