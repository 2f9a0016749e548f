"""Short finetunings of a tiny exported model, with a callback under test."""

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback

from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from triptych.cli import main
from triptych.models.remember.memory_lm import load_memory_lm

Finetune = Callable[..., Path]
OLD_FACTS = {
    "class_path": "triptych.datamodules.remember.facts.facts.Facts",
    "init_args": {
        "facts": {"num_facts": 30, "subset_seed": 1, "loss_on": "all"},
        "context_length": 64,
        "batch_size": 2,
    },
}
STREAM = {
    "class_path": "triptych.datamodules.remember.facts.fact_stream.FactStream",
    "init_args": {"facts": {"num_facts": 5, "subset_seed": 1}, "context_length": 96},
}


class CopyCheckpoint(Callback):
    """Keeps the first checkpoint of a run as `copy.ckpt`."""

    def on_train_batch_start(self, trainer, *args):
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists() and not last.with_name("copy.ckpt").exists():
            shutil.copy(last, last.with_name("copy.ckpt"))


COPY_CHECKPOINT = {"class_path": f"{__name__}.CopyCheckpoint"}


@pytest.fixture(scope="module")
def export(tmp_path_factory) -> Path:
    return export_tiny_model(tmp_path_factory.mktemp("base") / "export")


@pytest.fixture
def finetune(tiny, export) -> Finetune:
    """Runs six steps with SGD; `callbacks` are appended to those of every run."""

    def run(*words: object, callbacks: list[dict] | None = None, **model: object) -> Path:
        added = [f"--trainer.callbacks+={json.dumps(callback)}" for callback in callbacks or []]
        settings = {"optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 0.0, **model}
        steps = ("--trainer.limit_train_batches", 6)
        return main(tiny(*steps, *added, *words, **finetuning(export, **settings)))

    return run


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_memory_lm(folder).state_dict()


def same(first: Path, second: Path) -> bool:
    """Whether two runs exported the same model, to the bit."""
    pair = [weights(run / "export") for run in (first, second)]
    return all(torch.equal(pair[0][name], pair[1][name]) for name in pair[0] | pair[1])


def logged(run: Path, key: str) -> list[float]:
    with (run / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def callback_state(run: Path, name: str, file: str = "last.ckpt") -> dict:
    return torch.load(run / "checkpoints" / file, weights_only=True)["callbacks"][name]


def resumes_exactly(finetune: Finetune, callback: dict, key: str) -> None:
    """A run saved after its third step goes on as if it had not been stopped."""
    whole = finetune(
        *("--checkpoint.every_n_train_steps", 3), callbacks=[callback, COPY_CHECKPOINT]
    )
    copy = whole / "checkpoints" / "copy.ckpt"
    resumed = finetune("--ckpt_path", copy, callbacks=[callback])
    assert same(whole, resumed)
    assert logged(resumed, key) == logged(whole, key)[3:]
    assert len(logged(resumed, key)) == 3
