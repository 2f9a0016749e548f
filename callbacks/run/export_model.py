"""The trained model as a folder that `transformers` and `init_from` can load."""

import math
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import get_token
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import FSDPStrategy
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_folder, recover_folder
from triptych.callbacks.exporting.asking_form import (
    exported_tokenizer,
    num_positions,
    write_reply_limits,
)
from triptych.callbacks.exporting.export_kind import kind_of_export
from triptych.callbacks.exporting.hub_upload import check_repository_name, how_to_upload, upload
from triptych.callbacks.exporting.model_card import CARD_FILE, model_card, training_settings
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.save_config import CONFIG_FILE
from triptych.callbacks.trainer_parts import (
    callbacks_of,
    data_fingerprint,
    datamodule_of,
    num_dry_run_batches,
)
from triptych.models.adapter_folder import named_base, save_adapter
from triptych.models.host.checked_folder import write_checksums
from triptych.models.progress_bars import no_progress_bars
from triptych.models.sharding import gathered_state_dict, is_sharded
from triptych.protocols import (
    AddsToExport,
    BoundsReplies,
    Exports,
    HasChatTemplate,
    HasTokenizer,
    HoldsModel,
    SavesPretrained,
    StartsFrom,
)


class ExportModel(Callback):
    """Saves the model, its tokenizer, a model card and the settings of training.

    ``export/`` in the run's directory holds the best model if ``checkpoint.monitor`` names a
    metric, and the last one otherwise. It is replaced as a whole.

    The model is that of a `HoldsModel`. A module that `Exports` gives other weights for it, such as
    merged adapters. The tokenizer is that of a datamodule which `HasTokenizer`. It gets the form in
    which the data ask (`HasChatTemplate`), and the model's context as its longest text. Callbacks
    add files of their own (`AddsToExport`), such as the ledger of what was learned. ``SHA256SUMS``
    has the checksums of all files, which Triptych compares when it loads the folder.

    Args:
        push_to_hub: Name on the Hugging Face hub (`owner/name`) to upload the folder to, when the
            run has ended. If that fails, the run still succeeds, and a warning has the command
            that uploads it later.
        private: Whether a new repository on the hub is private.
        merge_adapters: Save a model with adapters (LoRA) as a plain model, with the adapters
            merged. By default the folder holds the adapters alone, as PEFT writes them, and names
            the base model; where the base is in no folder and on no hub, they are merged.

    Raises:
        ValueError: if the hub would refuse the name.
    """

    def __init__(
        self,
        push_to_hub: str | None = None,
        private: bool = False,
        merge_adapters: bool = False,
    ) -> None:
        if push_to_hub is not None:
            check_repository_name(push_to_hub)
        self.push_to_hub = push_to_hub
        self.private = private
        self.merge_adapters = merge_adapters
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
            elif self.push_to_hub is not None and get_token() is None:
                rank_zero_warn(
                    "export.push_to_hub needs a token of the hub, and there is none: log in with "
                    "`hf auth login` before the run ends, or set HF_TOKEN"
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
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Here all callbacks have written into the folder what belongs there.
        folder = Path(trainer.default_root_dir) / "export"
        if stage != "fit" or self.push_to_hub is None or num_dry_run_batches(trainer):
            return
        if trainer.is_global_zero and folder.is_dir():
            try:
                rank_zero_info(f"uploaded to {upload(folder, self.push_to_hub, self.private)}")
            except Exception as error:  # the trained model must not be lost to a network
                rank_zero_warn(
                    f"the export was not uploaded to {self.push_to_hub} ({_first_line(error)}). It "
                    f"is in {folder}. To upload it later: "
                    f"{how_to_upload(folder, self.push_to_hub, self.private)}"
                )

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
        merges = self.merge_adapters or getattr(pl_module, "merges_adapters", False)
        adapted = None if merges else _with_named_base(model)
        if isinstance(model, nn.Module) and is_sharded(model):  # every rank takes part
            options["state_dict"] = gathered_state_dict(model, trainer.is_global_zero)
        elif isinstance(
            trainer.strategy, FSDPStrategy
        ):  # gathers the shards: every rank takes part
            state = trainer.strategy.lightning_module_state_dict()
            options["state_dict"] = {name.removeprefix("model."): t for name, t in state.items()}
        elif adapted is None and isinstance(pl_module, Exports):
            options["state_dict"] = pl_module.export_state_dict()
        if trainer.is_global_zero:
            with atomic_folder(Path(trainer.default_root_dir) / "export") as folder:
                if adapted is not None:
                    save_adapter(adapted, folder)
                else:
                    with no_progress_bars():
                        model.save_pretrained(folder, **options)
                tokenizer = _save_tokenizer(trainer, pl_module, folder)
                self._save_card(trainer, pl_module, folder, tokenizer)
                for callback in callbacks_of(trainer):
                    if isinstance(callback, AddsToExport):
                        callback.add_to_export(folder)
                write_checksums(folder)

    def _save_card(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        folder: Path,
        tokenizer: PreTrainedTokenizerBase | None,
    ) -> None:
        composed = Path(trainer.default_root_dir) / CONFIG_FILE
        settings = training_settings(composed.read_text()) if composed.is_file() else {}
        if settings:
            (folder / CONFIG_FILE).write_text(yaml.safe_dump(settings, sort_keys=False))
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        model_card(
            kind_of_export(folder),
            self.push_to_hub or "export",
            settings,
            metrics={
                name: value
                for name, value in sorted(logged.items())
                if name.startswith("val/") and math.isfinite(value)
            },
            steps=trainer.global_step,
            fingerprint=data_fingerprint(trainer),
            tokenizer=tokenizer,
            init_from=pl_module.init_from if isinstance(pl_module, StartsFrom) else None,
            has_memory=getattr(_config(pl_module), "memory", None) is not None,
        ).save(folder / CARD_FILE)


def _save_tokenizer(
    trainer: Trainer, pl_module: LightningModule, folder: Path
) -> PreTrainedTokenizerBase | None:
    """Write the data's tokenizer, or the module's own where the data have none.

    Returns:
        What was written, if it is a tokenizer of transformers.
    """
    data = datamodule_of(trainer)
    tokenizer: Any = data.tokenizer if isinstance(data, HasTokenizer) else None
    if tokenizer is None and isinstance(pl_module, HasTokenizer):
        tokenizer = pl_module.tokenizer
    if tokenizer is None:
        return None
    config = _config(pl_module)
    if not isinstance(tokenizer, PreTrainedTokenizerBase) or config is None:
        tokenizer.save_pretrained(folder)
        return tokenizer if isinstance(tokenizer, PreTrainedTokenizerBase) else None
    form = data.chat_template if isinstance(data, HasChatTemplate) else None
    exported = exported_tokenizer(tokenizer, form, num_positions(config))
    exported.save_pretrained(folder)
    longest = pl_module.max_new_tokens if isinstance(pl_module, BoundsReplies) else None
    write_reply_limits(folder, exported, longest)
    return exported


def _config(pl_module: LightningModule) -> Any:
    """Return the config of the module's language model; None for other models."""
    model = pl_module.model if isinstance(pl_module, HoldsModel) else None
    return model.config if isinstance(model, PreTrainedModel) else None


def _with_named_base(model: SavesPretrained) -> PreTrainedModel | None:
    """Return the model if its adapters can be saved alone."""
    is_adapted = isinstance(model, PreTrainedModel) and named_base(model) is not None
    return model if is_adapted and isinstance(model, PreTrainedModel) else None


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _saves(pl_module: LightningModule) -> SavesPretrained | None:
    """Return the module's model if it can be exported."""
    model = pl_module.model if isinstance(pl_module, HoldsModel) else None
    return model if isinstance(model, SavesPretrained) else None
