"""A thousand steps of sparse memory finetuning on two processes, and one run in two parts."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, SequentialSampler

from tests.callbacks.remember.tiny_memory import (
    TinyMemoryModule,
    TinyRows,
    built,
    same_bits,
    trainer_for,
)
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

NUM_STEPS, ACCUMULATED, ROWS_A_MICRO_BATCH = 1000, 4, 4
NUM_EPOCHS, EARLY_EPOCHS, LATE_EPOCHS = 20, 4, 16
# Ten of the twelve tokens occur, so that there are slots which no batch reads.
NUM_ROWS = NUM_STEPS // NUM_EPOCHS * ACCUMULATED * ROWS_A_MICRO_BATCH


class KeepsTables(Callback):
    """Writes what each process has early in a run and at its end, and a late checkpoint."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.keep(trainer, pl_module, "end")

    def keep(self, trainer: Trainer, pl_module: LightningModule, when: str) -> None:
        (finetuning,) = [c for c in trainer.callbacks if isinstance(c, SparseMemoryFinetuning)]
        kept = {
            "table": pl_module.tables[0].weight.detach(),
            "written": finetuning.rows_written[0],
            "num_updates": finetuning.num_updates,
            "state": finetuning.state_dict()["optimizers"][0]["state"],
        }
        torch.save(kept, self.folder / f"{when}{trainer.global_rank}.pt")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == EARLY_EPOCHS - 1:
            self.keep(trainer, pl_module, "early")
        if trainer.current_epoch == LATE_EPOCHS - 1:
            trainer.save_checkpoint(self.folder / "late.ckpt", weights_only=False)


class EachItsOwn(SequentialSampler):
    """Rows 0, 2, 4, ... for the first of two processes, 1, 3, 5, ... for the second."""

    def __iter__(self) -> Iterator[int]:
        if not torch.distributed.is_initialized():
            return super().__iter__()
        rank, num_ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
        return iter(range(rank, len(self.data_source), num_ranks))

    def __len__(self) -> int:
        num_ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        return super().__len__() // num_ranks


def module_in_float64() -> TinyMemoryModule:
    return built(TinyMemoryModule).double()


def finetune(
    folder: Path, num_processes: int, start: Path | None = None, num_epochs: int = NUM_EPOCHS
) -> list[dict]:
    """Run to the end, from a checkpoint if there is one; returns what each process has."""
    folder.mkdir()
    finetuning = SparseMemoryFinetuning(
        6, ranking="tf", optimizer="adamw", learning_rate=0.01, weight_decay=0.1
    )
    settings = {"max_epochs": num_epochs, "accumulate_grad_batches": ACCUMULATED}
    if num_processes > 1:
        # Not "forkserver": Lightning lets its processes share the weights, each would change all's.
        strategy = DDPStrategy(start_method="spawn", process_group_backend="gloo")
        settings |= {"devices": num_processes, "strategy": strategy}
        settings |= {"use_distributed_sampler": False}  # it would shuffle
    trainer = trainer_for([finetuning, KeepsTables(folder)], folder, **settings)
    data = TinyRows(NUM_ROWS, num_tokens=10)
    loader = DataLoader(data, ROWS_A_MICRO_BATCH // num_processes, sampler=EachItsOwn(data))
    trainer.fit(module_in_float64(), loader, ckpt_path=start, weights_only=True)
    return kept(folder, "end", num_processes)


def kept(folder: Path, when: str, num_processes: int) -> list[dict]:
    return [torch.load(folder / f"{when}{rank}.pt") for rank in range(num_processes)]


@dataclass
class TwoProcesses:
    folder: Path
    ranks: list[dict]


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> TwoProcesses:
    folder = tmp_path_factory.mktemp("sparse") / "two"
    return TwoProcesses(folder, finetune(folder, 2))


def test_rows_never_selected_are_the_same_to_the_bit_after_a_thousand_steps(two_processes):
    first, second = two_processes.ranks
    assert first["num_updates"] == NUM_STEPS
    assert torch.equal(first["table"], second["table"])
    assert torch.equal(first["written"], second["written"])
    start = module_in_float64().tables[0].weight.detach()
    written = torch.zeros(len(start), dtype=torch.bool)
    written[first["written"]] = True
    assert 6 < written.sum() < len(start)
    assert torch.equal(same_bits(first["table"], start), ~written)


def test_one_process_with_the_same_batches_does_the_same(two_processes, tmp_path):
    (one,) = finetune(tmp_path / "one", 1, num_epochs=EARLY_EPOCHS)
    two, _ = kept(two_processes.folder, "early", 2)
    assert one["num_updates"] == two["num_updates"] == NUM_STEPS * EARLY_EPOCHS // NUM_EPOCHS
    assert torch.equal(one["written"], two["written"])
    assert torch.equal(one["state"]["steps"], two["state"]["steps"])
    torch.testing.assert_close(one["table"], two["table"], rtol=1e-7, atol=1e-9)


def test_an_interrupted_and_resumed_run_equals_one_that_was_not(two_processes, tmp_path):
    resumed = finetune(tmp_path / "resumed", 2, two_processes.folder / "late.ckpt")
    for ours, theirs in zip(resumed, two_processes.ranks, strict=True):
        assert ours["num_updates"] == theirs["num_updates"] == NUM_STEPS
        assert torch.equal(ours["table"], theirs["table"])
        assert torch.equal(ours["written"], theirs["written"])
        for name in ("first_moment", "second_moment", "steps"):
            assert torch.equal(ours["state"][name], theirs["state"][name])
