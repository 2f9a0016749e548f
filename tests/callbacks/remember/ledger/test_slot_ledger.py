"""The ledger of a run: which fact changed which slots, also when the run was interrupted."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from torch import Tensor
from torch.utils.data import DataLoader

from tests.callbacks.remember.tiny_memory import (
    TinyMemoryModule,
    built,
    rows,
    same_bits,
    trainer_for,
)
from triptych.callbacks.remember.ledger.slot_ledger import SlotLedger
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.models.remember.ledger.ledger import Ledger

STEPS_PER_VISIT = 3


def visits(num_visits: int, steps: int = STEPS_PER_VISIT) -> DataLoader:
    """One batch a visit, repeated; each teaches a fact of its own."""
    batches = [
        {**batch, "visit": torch.tensor(number), "fact_ids": [f"fact{number}"]}
        for number, batch in enumerate(rows(2 * num_visits))
        for _ in range(steps)
    ]
    return DataLoader(batches, batch_size=None)


def run(
    module: TinyMemoryModule, folder: Path, data: DataLoader, *more: Callback, **settings: Any
) -> Any:
    fit = {name: settings.pop(name) for name in ("ckpt_path", "weights_only") if name in settings}
    ledger = next((c for c in more if isinstance(c, SlotLedger)), None) or SlotLedger()
    others = [callback for callback in more if callback is not ledger]
    sparse = SparseMemoryFinetuning(4, ranking="tf", learning_rate=0.5, momentum=0.5)
    trainer = trainer_for([ledger, sparse, *others], folder, **settings)
    trainer.fit(module, data, **fit)
    return trainer


def tables_of(module: TinyMemoryModule) -> list[Tensor]:
    return [table.weight.detach().clone() for table in module.tables]


class Snapshots(Callback):
    """Copies of all tables before each batch, and at the end."""

    def __init__(self) -> None:
        self.tables: list[list[Tensor]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.tables.append(tables_of(pl_module))

    def on_train_end(self, trainer, pl_module) -> None:
        self.tables.append(tables_of(pl_module))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((folder / "ledger").iterdir())}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shared", [True, False])
def test_entries_are_what_a_comparison_of_whole_tables_finds(dtype, shared, tmp_path):
    module = built(lambda: TinyMemoryModule(2, shared, dtype=dtype))
    seen = Snapshots()
    run(module, tmp_path, visits(5), seen)
    ledger = Ledger.open(tmp_path / "ledger")
    assert [entry.facts for entry in ledger] == [(f"fact{n}",) for n in range(5)]
    assert [(entry.step, entry.visit) for entry in ledger] == [(3 * (n + 1), n) for n in range(5)]
    for number, entry in enumerate(ledger):
        befores, afters = seen.tables[3 * number], seen.tables[3 * number + 3]
        for change, before, after in zip(entry.tables, befores, afters, strict=True):
            changed = (~same_bits(before, after)).nonzero().flatten()
            assert torch.equal(change.rows_U, changed)
            assert 4 <= len(changed) < before.shape[0] / 2
            assert same_bits(change.old_UD, before[changed]).all()
            assert same_bits(change.new_UD, after[changed]).all()

    assert ledger.held_by(module) == 5
    ledger.revert_fact(module, "fact3")
    num_alone = 0
    for number, now in enumerate(tables_of(module)):
        own, later = (entry.tables[number].rows_U for entry in ledger.entries[3:])
        alone = own[~torch.isin(own, later)]
        num_alone += len(alone)
        expected = seen.tables[-1][number].clone()
        expected[alone] = seen.tables[9][number][alone]
        assert same_bits(now, expected).all()
    assert num_alone >= 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_all_facts_reverted_in_reverse_order_leave_the_base_to_the_bit(dtype, tmp_path):
    module = built(lambda: TinyMemoryModule(2, dtype=dtype))
    before = copy.deepcopy(module.state_dict())
    run(module, tmp_path, visits(6))
    assert not same_bits(module.tables[0].weight.detach(), before["tables.0.weight"]).all()
    ledger = Ledger.open(tmp_path / "ledger")
    for number in reversed(range(6)):
        ledger = ledger.revert_fact(module, f"fact{number}").ledger
    for name, value in before.items():
        assert torch.equal(module.state_dict()[name], value)


# -- what belongs to an entry ---------------------------------------------------------------------


def test_a_step_over_two_visits_belongs_to_both(tmp_path):
    """Two batches a step, three a visit: the second step learns from both facts."""
    run(built(TinyMemoryModule), tmp_path, visits(2), accumulate_grad_batches=2)
    ledger = Ledger.open(tmp_path / "ledger")
    assert [entry.facts for entry in ledger] == [("fact0",), ("fact0", "fact1")]
    assert [entry.step for entry in ledger] == [1, 3]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_fact_that_was_passed_over_is_in_no_entry(tmp_path):
    """Visit 1 (batches 3, 4 and 5) takes no step, visit 2 takes the last of three."""
    module = built(lambda: TinyMemoryModule(skipped=(3, 4, 5, 6, 7)))
    run(module, tmp_path, visits(3))
    ledger = Ledger.open(tmp_path / "ledger")
    assert [entry.facts for entry in ledger] == [("fact0",), ("fact2",)]
    assert [entry.step for entry in ledger] == [3, 9]


def test_without_visits_every_step_is_an_entry(tmp_path):
    run(built(TinyMemoryModule), tmp_path, rows(8), accumulate_grad_batches=2)
    ledger = Ledger.open(tmp_path / "ledger")
    assert [(entry.step, entry.visit, entry.facts) for entry in ledger] == [
        (1, None, ()),
        (2, None, ()),
    ]


def test_groups_name_facts_where_there_are_no_ids(tmp_path):
    batch = {**next(iter(rows(2))), "visit": torch.tensor(0), "group": torch.tensor([7, 3])}
    run(built(TinyMemoryModule), tmp_path, DataLoader([batch], batch_size=None))
    assert Ledger.open(tmp_path / "ledger").facts == ["3", "7"]


def test_rows_that_end_as_they_began_are_left_out(tmp_path):
    class PutsBack(Callback):
        """Undoes one row at the end of the visit."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
            if batch_idx == 0:
                self.before = tables_of(pl_module)[0]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
            now = pl_module.tables[0].weight.data
            self.changed = (~same_bits(now, self.before)).nonzero().flatten()
            now[self.changed[0]] = self.before[self.changed[0]]

    puts_back = PutsBack()
    run(built(TinyMemoryModule), tmp_path, visits(1, steps=1), puts_back)
    entry = Ledger.open(tmp_path / "ledger").entries[0]
    assert entry.tables[0].rows_U.tolist() == puts_back.changed[1:].tolist()


# -- overlap --------------------------------------------------------------------------------------


def test_overlap_is_logged_and_warned_of(tmp_path):
    shares = []

    class Keeps(Callback):
        def on_train_batch_end(self, trainer, *args) -> None:
            shares.append(float(trainer.callback_metrics["ledger/overlap_share"]))

    module = built(TinyMemoryModule)
    first, second = list(rows(4))
    batches = [
        {**batch, "visit": torch.tensor(number), "fact_ids": [f"fact{number}"]}
        for number, batch in enumerate([first, first, second])
    ]
    with pytest.warns(
        UserWarning, match=r"fact1 writes 4 rows, 100% of which .*: the delta of fact0 \(4 rows\)"
    ) as caught:
        run(
            module,
            tmp_path,
            DataLoader(batches, batch_size=None),
            *(SlotLedger(warn_on_overlap=0.9), Keeps()),
        )
    assert len([w for w in caught if "earlier facts have written" in str(w.message)]) == 1
    ledger = Ledger.open(tmp_path / "ledger")
    one, two, three = (set(entry.tables[0].rows_U.tolist()) for entry in ledger)
    assert one == two
    assert shares == [0.0, 1.0, pytest.approx(len(three & one) / 4)]
    assert shares[2] < 0.9


# -- interrupted and resumed ----------------------------------------------------------------------


class Saves(Callback):
    """Writes a checkpoint after some batch, and stops after a later one."""

    def __init__(self, path: Path, save_after: int, stop_after: int) -> None:
        self.path, self.save_after, self.stop_after = path, save_after, stop_after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if batch_idx == self.save_after:
            trainer.save_checkpoint(self.path)
        if batch_idx == self.stop_after:
            raise RuntimeError("the power went")


@pytest.mark.parametrize("save_after", [3, 4, 5])
@pytest.mark.parametrize("where", ["in place", "elsewhere"])
def test_a_resumed_ledger_equals_one_that_was_never_interrupted(save_after, where, tmp_path):
    """The checkpoint falls after each step of the second visit; later entries were written."""

    def make() -> TinyMemoryModule:
        return built(lambda: TinyMemoryModule(2, shared=False))

    whole = make()
    run(whole, tmp_path / "whole", visits(6))
    checkpoint = tmp_path / "stopped" / "checkpoints" / "last.ckpt"
    with pytest.raises(RuntimeError, match="the power went"):
        run(make(), tmp_path / "stopped", visits(6), Saves(checkpoint, save_after, 13))
    assert len(files(tmp_path / "stopped")) == 4
    resumed, folder = make(), tmp_path / ("stopped" if where == "in place" else "elsewhere")
    run(resumed, folder, skip(visits(6), save_after + 1), ckpt_path=checkpoint, weights_only=True)
    assert files(folder) == files(tmp_path / "whole")
    for table, expected in zip(tables_of(resumed), tables_of(whole), strict=True):
        assert torch.equal(table, expected)
    assert Ledger.open(folder / "ledger").held_by(resumed) == 6


def skip(data: DataLoader, num_batches: int) -> DataLoader:
    """What is left of an epoch: this plain loader does not know where it stopped."""
    return Resumable(list(data), num_batches)


class Resumable(DataLoader):
    """Starts behind the batches that the trainer has counted."""

    def __init__(self, batches: list[dict[str, Any]], start: int) -> None:
        super().__init__(batches, batch_size=None)
        self.start = start

    def state_dict(self) -> dict[str, int]:
        return {}

    def load_state_dict(self, state: dict[str, int]) -> None:
        pass

    def __iter__(self) -> Any:
        return iter(self.dataset[self.start :])


def test_a_new_run_in_the_folder_of_a_dead_one_begins_anew(tmp_path):
    run(built(TinyMemoryModule), tmp_path, visits(4))
    (tmp_path / "ledger" / ".entry_000004.safetensors.77.partial").write_text("half of it")
    run(built(TinyMemoryModule), tmp_path, visits(2))
    assert Ledger.open(tmp_path / "ledger").facts == ["fact0", "fact1"]
    assert list(files(tmp_path)) == ["entry_000000.safetensors", "entry_000001.safetensors"]


def test_the_same_callback_in_a_second_run(tmp_path):
    ledger = SlotLedger()
    run(built(TinyMemoryModule), tmp_path / "one", visits(2), ledger)
    module = built(TinyMemoryModule, seed=4)
    run(module, tmp_path / "two", visits(2), ledger)
    assert Ledger.open(tmp_path / "two" / "ledger").held_by(module) == 2


def test_entries_missing_at_resumption_are_named(tmp_path):
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    with pytest.raises(RuntimeError):
        run(built(TinyMemoryModule), tmp_path / "run", visits(4), Saves(checkpoint, 7, 8))
    (tmp_path / "run" / "ledger" / "entry_000001.safetensors").unlink()
    for folder in ("run", "elsewhere"):
        with pytest.raises(ValueError, match=r"SlotLedger: .*entry_000001.* is missing"):
            run(built(TinyMemoryModule), tmp_path / folder, visits(4), ckpt_path=checkpoint)


# -- errors ---------------------------------------------------------------------------------------


def test_nothing_to_watch(tmp_path):
    trainer = trainer_for(SlotLedger(), tmp_path)
    with pytest.raises(ValueError, match=r"SlotLedger has nothing to watch: add .*SparseMemory"):
        trainer.fit(built(TinyMemoryModule), visits(1))
