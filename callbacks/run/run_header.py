"""The first lines of a run: where it goes, what it runs on, and how much there is to do."""

import os
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from typing_extensions import override

from triptych.callbacks.trainer_parts import datamodule_of
from triptych.models.host.secrets import without_secrets
from triptych.protocols import DescribesParts, HasContextLength, HoldsModel


def print_place(run_dir: Path, config: str, seed: int, tracking_uri: str | None) -> None:
    """Print where a run goes, before anything slow.

    Args:
        run_dir: The run's directory.
        config: Its configuration files.
        seed: Its seed.
        tracking_uri: The MLflow store; None without one.
    """
    where = tracking_uri and without_secrets(tracking_uri)
    _print(
        [
            ("run", f"{run_dir}  (seed {seed}{f', {config}' if config else ''})"),
            ("MLflow", where or "off; metrics.csv in the run's directory has all numbers"),
        ]
    )


class RunHeader(Callback):
    """Prints device, model, data and planned steps before training, and the device elsewhere."""

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        _print(
            [_device(trainer), *_model(pl_module), *_data(trainer), ("steps", _steps(trainer))],
        )

    @override
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn == "validate":
            _print([_device(trainer), *_model(pl_module)])


@rank_zero_only
def _print(rows: list[tuple[str, str]]) -> None:
    for name, text in rows:
        print(f"{name:>7}  {text}", flush=True)


def _device(trainer: Trainer) -> tuple[str, str]:
    device = trainer.strategy.root_device
    if device.type == "cpu":
        name = f"cpu, {torch.get_num_threads()} threads of {os.cpu_count()} cores"
        if torch.cuda.is_available():
            name += " (a GPU is there and not used)"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    if trainer.world_size > 1:
        name += f", {trainer.world_size} processes"
    return "device", f"{name}, precision {trainer.precision}"


def _model(pl_module: LightningModule) -> list[tuple[str, str]]:
    model = pl_module.model if isinstance(pl_module, HoldsModel) else None
    model = pl_module if model is None else model
    count = sum(p.numel() for p in model.parameters())
    trained = sum(p.numel() for p in pl_module.parameters() if p.requires_grad)
    name = type(model).__name__.removeprefix("FSDP")  # of a model that is sharded
    size = f"{name}, {count:,} parameters"
    rows = [("model", size if trained == count else f"{size}, {trained:,} trained in this run")]
    return rows + (pl_module.described_parts() if isinstance(pl_module, DescribesParts) else [])


def _data(trainer: Trainer) -> list[tuple[str, str]]:
    data: Any = datamodule_of(trainer)
    if data is None:
        return []
    text = f"{type(data).__name__}, {_count(trainer.num_training_batches)} batches an epoch"
    batch_size = getattr(data, "batch_size", None)
    if isinstance(batch_size, int):
        text += f" of {batch_size} rows"
        if isinstance(data, HasContextLength):
            text += f" of up to {data.context_length:,} tokens"
    num_batches = trainer.num_val_batches
    counts = num_batches if isinstance(num_batches, list) else [num_batches]
    return [("data", f"{text}; validation: {_count(sum(counts))} batches")]


def _steps(trainer: Trainer) -> str:
    total = trainer.estimated_stepping_batches
    text = f"{_count(total)}" + (f", from {trainer.global_step:,}" if trainer.global_step else "")
    every = trainer.val_check_batch
    if not trainer.enable_validation or not isinstance(every, int | float):
        return f"{text}, without validation" if not trainer.enable_validation else text
    return f"{text}, validation every {_count(every)} batches and at the end"


def _count(number: int | float) -> str:
    return f"{int(number):,}" if number < float("inf") else "endless"
