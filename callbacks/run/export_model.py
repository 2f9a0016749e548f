"""The trained model as a folder that `transformers` and `init_from` can load."""

from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import FSDPStrategy
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_folder
from triptych.models.progress_bars import no_progress_bars


class ExportModel(Callback):
    """Saves ``pl_module.model`` and ``datamodule.tokenizer`` with ``save_pretrained``.

    ``export/`` in the run's directory holds the best model where ``checkpoint.monitor`` names a
    metric, and the last one otherwise. It is replaced as a whole.

    A module whose model is not quite what it is to leave behind, such as one with adapters, has
    ``export_state_dict() -> dict[str, Tensor]``: the weights to save.
    """

    def __init__(self) -> None:
        self._best_score: float | None = None

    @property
    @override
    def state_key(self) -> str:
        return "ExportModel"

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not (Path(trainer.default_root_dir) / "export").is_dir():
            self._best_score = None  # resumed in a new directory, where nothing is the best yet

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        monitor = getattr(trainer.checkpoint_callback, "monitor", None)
        if trainer.sanity_checking or monitor not in trainer.callback_metrics:
            return
        score = float(trainer.callback_metrics[monitor])
        smaller_is_better = trainer.checkpoint_callback.mode == "min"
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
        model = getattr(pl_module, "model", None)
        if not hasattr(model, "save_pretrained"):
            return
        options = {}
        if isinstance(trainer.strategy, FSDPStrategy):  # gathers the shards: every rank takes part
            state = trainer.strategy.lightning_module_state_dict()
            options["state_dict"] = {name.removeprefix("model."): t for name, t in state.items()}
        elif hasattr(pl_module, "export_state_dict"):
            options["state_dict"] = pl_module.export_state_dict()
        if trainer.is_global_zero:
            with atomic_folder(Path(trainer.default_root_dir) / "export") as folder:
                with no_progress_bars():
                    model.save_pretrained(folder, **options)
                tokenizer = getattr(trainer.datamodule, "tokenizer", None)
                if tokenizer is not None:
                    tokenizer.save_pretrained(folder)
