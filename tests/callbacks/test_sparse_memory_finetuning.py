"""Sparse memory finetuning in a module of its own kind, against a dense reference."""

import copy
import math
from collections import Counter
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn

from callbacks.sparse_memory_finetuning import ANCHOR, RowObserver, SparseMemoryFinetuning
from callbacks.training_reads import keep_mask
from models.value_table import ValueTable
from objectives.background_statistics import BackgroundStatistics
from objectives.slot_scores import TableStatistics
from tests.callbacks.tiny_memory import (
    NUM_KEYS,
    TinyMemoryModule,
    built,
    rows,
    same_bits,
    trainer_for,
)

OPTIMIZERS = [
    {"optimizer": "sgd", "learning_rate": 3.0},
    {"optimizer": "sgd", "learning_rate": 3.0, "momentum": 0.9, "weight_decay": 0.2},
    {"optimizer": "adagrad", "learning_rate": 0.3, "weight_decay": 0.2},
    {"optimizer": "adamw", "learning_rate": 0.3, "weight_decay": 0.2},
]
every_optimizer = pytest.mark.parametrize("settings", OPTIMIZERS, ids=str)
NUM_SLOTS = NUM_KEYS**2


def tf(num_slots: int = 4, **settings: Any) -> SparseMemoryFinetuning:
    return SparseMemoryFinetuning(num_slots, ranking="tf", **settings)


def fit(
    module: LightningModule, callback: SparseMemoryFinetuning, folder: Any, data: Any, **more: Any
) -> Any:
    trainer = trainer_for(callback, folder, **more)
    trainer.fit(module, data)
    return trainer


def tables_of(module: TinyMemoryModule) -> list[Tensor]:
    return [table.weight.detach().clone() for table in module.tables]


# -- against a reference --------------------------------------------------------------------------


def reference_step(
    module: TinyMemoryModule,
    batches: list[dict[str, Tensor]],
    num_slots: int,
    rate: float,
    frequency: list[list[int]] | None = None,
    num_documents: int = 0,
) -> list[set[int]]:
    """One step with dense gradients and counts by hand; returns the rows of each table.

    For a module whose tables are not frozen. A slot scores c / sum c * ln((N + 1) / (df + 1)).
    """
    counts = [Counter() for _ in module.tables]
    module.zero_grad()
    for layer in module.layers:
        layer.recording = True
    for batch in batches:
        (module.loss(batch) / len(batches)).backward()
        text = batch["segment_ids"] > 0
        for layer in module.layers:
            number = [table is layer.values for table in module.tables].index(True)
            counts[number].update(layer.last_ids[text].flatten().tolist())
    chosen = []
    for number, table in enumerate(module.tables):
        total = sum(counts[number].values())
        scores = {}
        for slot, count in counts[number].items():
            scores[slot] = count / total
            if frequency is not None:
                scores[slot] *= math.log((num_documents + 1) / (frequency[number][slot] + 1))
        best = sorted((-score, slot) for slot, score in scores.items() if score > 0)
        selected = sorted(slot for _, slot in best[:num_slots])
        with torch.no_grad():
            table.weight[selected] -= rate * table.weight.grad[selected]
        chosen.append(set(selected))
    return chosen


@pytest.mark.parametrize(("num_layers", "shared"), [(1, True), (2, True), (2, False)])
@pytest.mark.parametrize("accumulated", [1, 3])
def test_it_equals_a_masked_dense_gradient(num_layers, shared, accumulated, tmp_path):
    """Two layers on one table: their counts are added, and they have one set of rows."""
    module = built(lambda: TinyMemoryModule(num_layers, shared))
    reference = copy.deepcopy(module)
    callback = tf(learning_rate=0.5)
    fit(module, callback, tmp_path, rows(18), accumulate_grad_batches=accumulated)
    batches, written = list(rows(18)), [set() for _ in reference.tables]
    for start in range(0, 9, accumulated):
        chosen = reference_step(reference, batches[start : start + accumulated], 4, 0.5)
        written = [seen | new for seen, new in zip(written, chosen, strict=True)]
    assert callback.num_updates == 9 / accumulated
    assert [set(table.tolist()) for table in callback.rows_written] == written
    for table, expected in zip(tables_of(module), tables_of(reference), strict=True):
        torch.testing.assert_close(table, expected, rtol=1e-5, atol=1e-6)


def statistics_for(module: nn.Module, tokenizer: Any, num_documents: int = 9) -> Any:
    generator = torch.Generator().manual_seed(1)
    tables = []
    for _ in module.tables:
        frequency = torch.randint(num_documents + 1, (NUM_SLOTS,), generator=generator)
        tables.append(TableStatistics(frequency, frequency * 3, num_documents))
    return tables
