"""What a run changed, row by row: against whole copies of the tables."""

import pytest
import torch

from tests.callbacks.remember.tiny_memory import TinyMemoryModule, built, rows, trainer_for
from triptych.callbacks.remember.changed_rows import ChangedRows, row_hashes
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning

SLOTS = 64


def sparse() -> SparseMemoryFinetuning:
    return SparseMemoryFinetuning(3, ranking="tf", optimizer="adamw", learning_rate=0.3)


def fit(module, callbacks, folder, **more):
    trainer = trainer_for(callbacks, folder, **more)
    trainer.fit(module, rows(8))
    return trainer


def copies(module):
    return [table.weight.detach().clone() for table in module.tables]


@pytest.fixture
def module():
    return built(lambda: TinyMemoryModule(2, shared=False))


def test_it_counts_what_sparse_finetuning_changed(module, tmp_path):
    before, report, finetuning = copies(module), ChangedRows(), sparse()
    fit(module, [finetuning, report], tmp_path)
    moved = [
        (old != new).any(1).nonzero().flatten()
        for old, new in zip(before, copies(module), strict=True)
    ]
    assert sum(map(len, moved)) > 3
    assert all(torch.equal(a, b) for a, b in zip(report.changed, moved, strict=True))
    written = sum(map(len, finetuning.rows_written))
    count = sum(map(len, moved))
    assert report.summary_rows() == [
        ("memory rows changed", f"{count} of {2 * SLOTS}"),
        ("rows changed that no step selected", f"0 of {2 * SLOTS - written}"),
        ("other parameters changed", "0 of 10"),
    ]


def test_a_change_where_none_may_be_is_seen(module, tmp_path):
    report, finetuning = ChangedRows(), sparse()

    class Meddling(ChangedRows):
        def on_train_end(self, trainer, pl_module):
            selected = finetuning.rows_written[1].tolist()
            row = next(row for row in range(SLOTS) if row not in selected)
            with torch.no_grad():
                module.tables[1].weight[row, 2] = torch.nextafter(
                    module.tables[1].weight[row, 2], torch.tensor(9.0)
                )
                module.head.bias[0] += 1e-6

    fit(module, [finetuning, Meddling(), report], tmp_path)
    assert report.changed_unselected == 1
    assert report.changed_parameters == ["head.bias"]


def test_without_sparse_finetuning_all_may_change(module, tmp_path):
    report = ChangedRows()
    fit(module, [report], tmp_path)
    assert report.changed_unselected is None
    assert len(report.changed_parameters) == 9
    assert [name for name, _ in report.summary_rows()] == [
        "memory rows changed",
        "other parameters changed",
    ]


def test_a_resumed_run_is_compared_with_its_first_start(module, tmp_path):
    path, before = tmp_path / "last.ckpt", copies(module)
    trainer = fit(module, [sparse(), ChangedRows()], tmp_path, max_epochs=1)
    trainer.save_checkpoint(path)
    resumed, report = built(lambda: TinyMemoryModule(2, shared=False)), ChangedRows()
    trainer = trainer_for([sparse(), report], tmp_path, max_epochs=2)
    trainer.fit(resumed, rows(8), ckpt_path=path, weights_only=True)
    moved = [(old != new).any(1).sum() for old, new in zip(before, copies(resumed), strict=True)]
    assert list(map(len, report.changed)) == moved


def test_hashes_see_one_bit_and_any_number_of_rows():
    table = torch.randn(5000, 1024)  # more than one piece
    hashes = row_hashes(table)
    other = table.clone()
    other[4999, 1023] = torch.nextafter(other[4999, 1023], torch.tensor(9.0))
    assert (hashes != row_hashes(other)).nonzero().flatten().tolist() == [4999]
    assert len(hashes.unique()) == 5000
    assert len(row_hashes(table[:3].bfloat16()).unique()) == 3


def test_a_module_without_memory(tmp_path):
    with pytest.raises(ValueError, match="has no value table"):
        fit(TinyMemoryModule(0, shared=False), [ChangedRows()], tmp_path)
