"""Protection of earlier facts' reads in sparse memory finetuning, run as users run it."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Trainer

from tests.callbacks.remember.finetuning_runs import (
    export,
    exported,
    finetune,
    finetune_by_yaml,
    resumes_exactly,
    same,
)
from triptych.callbacks.remember.read_protection import FILE, ReadProtection
from triptych.callbacks.remember.row_updates import RowObserver
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.models.host.checked_folder import write_checksums
from triptych.models.remember.values.value_table import ValueTable
from triptych.models.tensor_file import load_tensors

__all__ = ["export", "finetune", "finetune_by_yaml"]

SETTINGS = {"num_slots": 12, "ranking": "tf", "optimizer": "adamw", "learning_rate": 0.1}


def callback(protection=20.0):
    return SparseMemoryFinetuning(**SETTINGS, protection=protection)


class FirstFact(RowObserver):
    """Notes how far the outputs at the first visit's positions move in later visits.

    Attributes:
        moved: Norm of the outputs' change in each later step.
    """

    def __init__(self, reads):
        self.reads, self.moved, self._before = reads, [], None

    def _outputs(self, table):
        ids, weights = self.reads["ids"].long(), self.reads["weights"]
        return torch.einsum("pk,pkd->pd", weights, table.weight.detach()[ids])

    def before_update(self, table_id, table, rows):
        self._before = self._outputs(table)

    def after_update(self, table_id, table, rows):
        self.moved.append((self._outputs(table) - self._before).norm().item())


def moved_by(finetune, protection, reads):
    observed, watcher = callback(protection), FirstFact(reads)
    observed.observers.append(watcher)
    return finetune(observed, steps_per_visit=3), watcher.moved


def test_later_facts_move_the_first_ones_outputs_less(finetune):
    one_visit = finetune(callback(), steps_per_visit=6)
    protection = one_visit.state("SparseMemoryFinetuning")["protection"]
    tensors = protection["tensors"]
    reads = {name: tensors[f"table_0.{name}"] for name in ("ids", "weights")}
    assert protection["num_open"] == [len(reads["ids"])]
    assert len(reads["ids"]) > 5
    free, moved_free = moved_by(finetune, 0.0, reads)
    kept, moved = moved_by(finetune, 1e4, reads)
    assert moved[:3] == moved_free[:3]  # nothing is protected in the first visit
    assert sum(moved[3:]) < 0.2 * sum(moved_free[3:])
    assert not same(free, kept)


@pytest.mark.parametrize("steps_per_visit", [2, 4], ids=["in a later visit", "in the first visit"])
def test_resumes_exactly(finetune, steps_per_visit):
    """Saved after the third step; the fact of the first visit is protected from the second on."""
    finetune = partial(finetune, steps_per_visit=steps_per_visit)
    resumes_exactly(finetune, callback, "train/nll_nats_per_token")


def test_an_export_hands_its_reads_to_the_next_run(finetune_by_yaml, export):
    section = {
        "class_path": "triptych.callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning",
        "init_args": {**SETTINGS, "protection": 20.0},
    }
    first = finetune_by_yaml(callbacks=[section]) / "export"
    held, _ = load_tensors(first / FILE)
    second = finetune_by_yaml(callbacks=[section], init_from=str(first)) / "export"
    more, _ = load_tensors(second / FILE)
    num_held = len(held["table_0.ids"])
    assert num_held > 5
    assert len(more["table_0.ids"]) == 2 * num_held
    assert torch.equal(more["table_0.ids"][:num_held], held["table_0.ids"])
    section["init_args"]["protection"] = 0.0
    handed_on = finetune_by_yaml(callbacks=[section], init_from=str(first)) / "export"
    assert (handed_on / FILE).read_bytes() == (first / FILE).read_bytes()
    section["init_args"]["protection"] = 20.0
    (first / FILE).unlink()  # the same facts, unprotected: other values
    write_checksums(first)
    unprotected = finetune_by_yaml(callbacks=[section], init_from=str(first))
    weight = next(
        name for name in exported(second.parent) if name.endswith("weight") and "value" in name
    )
    assert not torch.equal(exported(unprotected)[weight], exported(second.parent)[weight])


def test_data_without_visits_and_accumulation_are_refused(finetune):
    with pytest.raises(ValueError, match="set one of them to its default"):
        finetune(callback(), trainer={"accumulate_grad_batches": 2})
    table = ValueTable(4, 2, gradient="selected_rows")
    protection, batch = ReadProtection([table], 1.0), {"labels": torch.tensor([[-100, 3]])}
    with pytest.raises(ValueError, match=r"belong to none: use .*FactStream"):
        protection.note(Trainer(logger=False), batch)
    with pytest.raises(ValueError, match="no memory layer read all 2 positions"):
        protection.note(Trainer(logger=False), batch | {"visit": torch.tensor(0)})
