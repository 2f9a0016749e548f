"""Sparse memory finetuning of a stream, whose batches come again, with and without remembering."""

from contextlib import nullcontext

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from torch.utils.data import DataLoader

from tests.callbacks.remember.finetuning_runs import export, finetune
from tests.callbacks.remember.tiny_memory import trainer_for
from triptych.callbacks.remember import sparse_memory_finetuning as module
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.models.remember.memory_lm import load_memory_lm

__all__ = ["export", "finetune"]


def test_a_run_learns_the_same_to_the_bit_and_leaves_the_model_as_it_was(
    finetune, export, monkeypatch
):
    remember, seen = module.remember_repeated_input, []

    def remembering(model):
        seen.extend(remember(model))
        return list(seen)

    weights = {}
    for name, instead in (("with", remembering), ("without", lambda model: [])):
        monkeypatch.setattr(module, "remember_repeated_input", instead)
        sparse = SparseMemoryFinetuning(4, ranking="tf", optimizer="adamw", learning_rate=0.1)
        weights[name] = finetune(sparse, trainer={"limit_train_batches": 1.0}).weights
    names = {(type(call.module).__name__, call.name) for call in seen}
    assert {("LlamaDecoderLayer", "forward"), ("ProductKeyIndex", "lookup")} <= names
    assert all(call.name not in call.module.__dict__ for call in seen)
    start = load_memory_lm(export).state_dict()
    assert not torch.equal(
        weights["with"]["memory_values.0.weight"], start["memory_values.0.weight"]
    )
    for name, tensor in weights["without"].items():
        assert torch.equal(weights["with"][name], tensor), name


class BreaksOff(Callback):
    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == 2:
            raise RuntimeError("the second step")


def test_a_run_that_breaks_off_leaves_the_model_as_it_was(export, tmp_path):
    model = load_memory_lm(export).train()
    module = HoldsIt(model)
    for callback, ends in ((BreaksOff(), pytest.raises(RuntimeError)), (None, nullcontext())):
        sparse = SparseMemoryFinetuning(4, ranking="tf")
        trainer = trainer_for([sparse, *filter(None, [callback])], tmp_path, max_steps=3)
        with ends:
            trainer.fit(module, DataLoader(torch.ones(12, 5, dtype=torch.int64), 4))
        assert all("forward" not in part.__dict__ for part in model.modules())


class HoldsIt(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model = model

    def training_step(self, ids_BT, _):
        return self.model(input_ids=ids_BT, labels=ids_BT, use_cache=False).loss

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.1)
