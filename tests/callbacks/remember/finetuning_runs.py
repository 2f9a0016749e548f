"""Short finetunings of a tiny exported model, with callbacks under test."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from tests.lit_modules.remember.tiny_export import export_tiny_model, finetuning
from triptych.callbacks.run.checkpoint import Checkpoint
from triptych.callbacks.run.step_seeds import StepSeeds
from triptych.callbacks.tracking.local_metrics import LocalMetrics
from triptych.cli import main
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.lit_modules.remember.continual_finetuning import ContinualFinetuning
from triptych.models.remember.memory_lm import load_memory_lm

SGD = {"optimizer": "sgd", "learning_rate": 0.2, "weight_decay": 0.0}
OLD_FACTS = {
    "class_path": "triptych.datamodules.remember.facts.facts.Facts",
    "init_args": {
        "facts": {"num_facts": 30, "subset_seed": 1, "loss_on": "all"},
        "context_length": 64,
        "batch_size": 2,
    },
}


def old_facts(**settings: Any) -> Facts:
    """`OLD_FACTS` built in Python; without a tokenizer, which the run gives."""
    config = FactsConfig(num_facts=30, subset_seed=1, loss_on="all")
    return Facts(config, **{"context_length": 64, "batch_size": 2} | settings)


class CopyCheckpoint(Callback):
    """Keeps the first checkpoint of a run as `copy.ckpt`."""

    def on_train_batch_start(self, trainer, *args):
        last = Path(trainer.default_root_dir) / "checkpoints" / "last.ckpt"
        if last.exists() and not last.with_name("copy.ckpt").exists():
            shutil.copy(last, last.with_name("copy.ckpt"))


@dataclass(frozen=True)
class Finetuned:
    """A run that has ended.

    Attributes:
        folder: Its directory, with `metrics.csv` and `checkpoints/`.
        weights: Of its model at the end.
    """

    folder: Path
    weights: dict[str, torch.Tensor]

    def logged(self, key: str) -> list[float]:
        return logged(self.folder, key)

    def state(self, name: str, file: str = "last.ckpt") -> dict[str, Any]:
        """What a callback left in a checkpoint."""
        return torch.load(self.folder / "checkpoints" / file, weights_only=True)["callbacks"][name]


Finetune = Callable[..., Finetuned]


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_tiny_model(tmp_path_factory.mktemp("base") / "export")


@pytest.fixture(scope="module")
def finetune(tmp_path_factory: pytest.TempPathFactory, export: Path) -> Finetune:
    """Runs six steps with SGD as `train.py` would, by a Trainer that is built here.

    Arguments: callbacks under test; `ckpt_path` to go on from, `every_n_train_steps` between
    checkpoints, `steps_per_visit` to a fact, settings of the Trainer as `trainer`, and arguments of
    the module.
    """
    root, numbers = tmp_path_factory.mktemp("finetuned"), count()

    def run(
        *callbacks: Callback,
        ckpt_path: Path | None = None,
        every_n_train_steps: int | None = None,
        steps_per_visit: int = 4,
        trainer: dict[str, Any] | None = None,
        **model: Any,
    ) -> Finetuned:
        folder = root / str(next(numbers))
        model = {"init_from": str(export), "max_new_tokens": 3, **SGD, **model}
        data = FactStream(
            FactsConfig(num_facts=6, validation_facts=3),
            tokenizer=TokenizerConfig(path=str(export)),
            context_length=96,
            steps_per_visit=steps_per_visit,
        )
        settings = {
            "max_epochs": 1,
            "limit_train_batches": 6,
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,
            **(trainer or {}),
        }
        torch.manual_seed(42)
        fitted = Trainer(
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            logger=LocalMetrics(folder),
            callbacks=[StepSeeds(), *callbacks, Checkpoint(None, "min", every_n_train_steps)],
            enable_progress_bar=False,
            enable_model_summary=False,
            **settings,
        )
        module = ContinualFinetuning(data.vocab_size, **model)
        fitted.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
        return Finetuned(folder, module.model.state_dict())

    return run


@pytest.fixture
def finetune_by_yaml(tiny: Callable[..., list[str]], export: Path) -> Callable[..., Path]:
    """The same six steps by `main`: callbacks are sections of a configuration."""

    def run(*words: object, callbacks: list[dict], **model: object) -> Path:
        added = [f"--trainer.callbacks+={json.dumps(callback)}" for callback in callbacks]
        steps = ("--trainer.limit_train_batches", 6)
        return main(tiny(*steps, *added, *words, **finetuning(export, **SGD | model)))

    return run


def exported(run: Path) -> dict[str, torch.Tensor]:
    return load_memory_lm(run / "export").state_dict()


def same(first: Finetuned, second: Finetuned) -> bool:
    """Whether two runs ended with the same model, to the bit."""
    names = first.weights | second.weights
    return all(torch.equal(first.weights[name], second.weights[name]) for name in names)


def logged(folder: Path, key: str) -> list[float]:
    with (folder / "metrics.csv").open() as file:
        return [float(row[key]) for row in csv.DictReader(file) if row.get(key)]


def resumes_exactly(finetune: Finetune, make: Callable[[], Callback], key: str) -> None:
    """A run saved after its third step goes on as if it had not been stopped."""
    whole = finetune(make(), CopyCheckpoint(), every_n_train_steps=3)
    resumed = finetune(make(), ckpt_path=whole.folder / "checkpoints" / "copy.ckpt")
    assert same(whole, resumed)
    assert resumed.logged(key) == whole.logged(key)[3:]
    assert len(resumed.logged(key)) == 3
