"""The loader against an uninterrupted reading, alone and in a Trainer."""

import functools
import itertools
import pickle

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from triptych.datamodules.batches.packing import Document, DocumentSource
from triptych.datamodules.batches.resumable_loader import ResumableLoader, Shard
from triptych.datamodules.batches.row_stream import EpochStream, MixtureStream
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.text.text_corpus import TextConfig, TextCorpus
from triptych.datamodules.sources.records import RecordSource

CONTEXT_LENGTH = 12


class CountedDocuments(DocumentSource):
    """Documents with tokens that encode document, epoch and position."""

    def __init__(self, name: str, num_documents: int, base: int) -> None:
        self.name = name
        self._num_documents = num_documents
        self._base = base

    def __len__(self) -> int:
        return self._num_documents

    def document(self, index: int, epoch: int) -> Document:
        length = 2 + (7 * index + epoch) % 17
        ids = self._base + 1000 * epoch + 20 * index + np.arange(length)
        return Document(ids, ids)


def first_tokens(planned):
    """Collate to something small that identifies the rows."""
    return {"rows": [(row.source_id, *(int(s.ids[0]) for s in row.segments())) for row in planned]}


def make_loader(**options):
    streams = [
        EpochStream(CountedDocuments("a", 23, 0), 5, CONTEXT_LENGTH),
        EpochStream(CountedDocuments("b", 4, 500_000), 5, CONTEXT_LENGTH),
    ]
    stream = MixtureStream(streams, [0.75, 0.25], 5)
    settings = {"batch_size": 3, "rows_per_epoch": 15} | options
    return ResumableLoader(stream, first_tokens, **settings)


def read(loader, num_batches):
    """Read a number of batches, over several epochs."""
    batches = itertools.chain.from_iterable(iter(loader) for _ in itertools.count())
    return [batch["rows"] for batch in itertools.islice(batches, num_batches)]


def test_an_epoch_ends_after_its_batches_and_the_next_goes_on():
    loader = make_loader()
    assert len(loader) == 5
    epochs = [[batch["rows"] for batch in loader] for _ in range(3)]
    assert [len(epoch) for epoch in epochs] == [5, 5, 5]
    assert list(itertools.chain(*epochs)) == read(make_loader(rows_per_epoch=10**6), 15)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stopped_after", [0, 1, 4, 5, 6, 13])
def test_stopping_anywhere_leaves_the_remaining_batches_as_they_were(num_workers, stopped_after):
    uninterrupted = read(make_loader(), 20)
    first = make_loader(num_workers=num_workers)
    assert read(first, stopped_after) == uninterrupted[:stopped_after]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    second = make_loader(num_workers=num_workers)
    second.load_state_dict(state)
    assert read(second, 20 - stopped_after) == uninterrupted[stopped_after:]


def test_the_number_of_workers_does_not_matter():
    assert read(make_loader(num_workers=2), 17) == read(make_loader(num_workers=0), 17)


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_read_the_rows_of_one_process_with_a_larger_batch(world_size):
    alone = read(make_loader(batch_size=2 * world_size), 12)
    together = [
        read(make_loader(batch_size=2, shard=Shard(rank, world_size)), 12)
        for rank in range(world_size)
    ]
    assert [list(itertools.chain(*parts)) for parts in zip(*together, strict=True)] == alone


def test_resuming_with_other_processes_is_exact():
    uninterrupted = read(make_loader(batch_size=4), 9)
    first = make_loader(batch_size=2, shard=Shard(1, 2))
    read(first, 4)
    second = make_loader(batch_size=4)
    second.load_state_dict(first.state_dict())
    assert read(second, 5) == uninterrupted[4:]


def test_another_global_batch_is_refused():
    with pytest.raises(ValueError, match=r"3 rows per batch.*this run has 4.*batch_size"):
        make_loader(batch_size=4).load_state_dict(make_loader(batch_size=3).state_dict())


def test_rows_of_other_processes_are_not_read():
    loads = []

    def collate(planned):
        loads.append(len(planned))
        return {"rows": planned}

    loader = make_loader(shard=Shard(0, 4))
    loader._collate = collate
    read(loader, 5)
    assert loads == [3] * 5


def test_the_global_random_state_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    read(make_loader(num_workers=1), 3)
    assert torch.equal(torch.rand(2), expected)


class Recorder(LightningModule):
    """A minimal model that records its batches."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.nn.Parameter(torch.rand(400, generator=generator))
        self.seen = []
        self.validated = []

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["input_ids"].clone())
        return (self.weight[batch["input_ids"]] ** 2).mean()

    def validation_step(self, batch, batch_idx):
        self.validated.append(self.global_step)

    def configure_optimizers(self):
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.5)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Killed(Exception):  # noqa: N818
    """Simulate the end of the process."""


class SaveAndDie(Callback):
    """Write a checkpoint after a number of batches, in a given hook, and stop."""

    def __init__(self, after: int, path: str, hook: str) -> None:
        self._after, self._path, self._hook = after, path, hook

    def _save(self, trainer) -> None:
        trainer.save_checkpoint(self._path)
        raise Killed

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if self._hook == "batch_end" and len(pl_module.seen) == self._after:
            self._save(trainer)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if self._hook == "next_batch" and len(pl_module.seen) == self._after:
            self._save(trainer)

    def on_validation_end(self, trainer, pl_module) -> None:
        if self._hook == "validation_end" and len(pl_module.seen) == self._after:
            self._save(trainer)

    def on_train_epoch_end(self, trainer, pl_module) -> None:
        if self._hook == "epoch_end" and len(pl_module.seen) == self._after:
            self._save(trainer)


def fit(text_file, callbacks=(), ckpt_path=None, num_workers=0, accumulate=2, **options):
    """Train over more than two epochs of five batches; the fifth is a step by itself."""
    module = Recorder()
    source = RecordSource(text_file)
    data = TextCorpus(
        TextConfig([source], {"text": RecordSource()}, max_validation_rows=2),
        tokenizer=TokenizerConfig(vocab_size=300),
        context_length=32,
        batch_size=4,
        rows_per_epoch=20,
        num_workers=num_workers,
    )
    trainer = Trainer(
        accelerator="cpu",
        max_steps=8,
        max_epochs=-1,
        accumulate_grad_batches=accumulate,
        use_distributed_sampler=False,
        val_check_interval=2,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=ckpt_path)
    return module, trainer


@functools.cache
def fit_uninterrupted(text_file, accumulate):
    return fit(text_file, accumulate=accumulate)[0]


CASES = [
    *[(after, "batch_end", 0, 2) for after in range(1, 13)],  # within and at the end of windows
    *[(after, "next_batch", 0, 2) for after in (3, 4, 5, 7)],
    *[(after, "validation_end", 0, 2) for after in (2, 4, 6, 8)],
    *[(after, "epoch_end", 0, 2) for after in (5, 10)],
    *[(after, "batch_end", 2, 2) for after in (4, 5, 8)],
    *[(after, "batch_end", 0, 1) for after in (3, 5)],
    *[(after, "batch_end", 0, 3) for after in (4, 8)],
]


@pytest.mark.parametrize(("after", "hook", "num_workers", "accumulate"), CASES)
def test_a_killed_fit_goes_on_exactly(text_file, tmp_path, after, hook, num_workers, accumulate):
    whole = fit_uninterrupted(text_file, accumulate)
    path = str(tmp_path / "killed.ckpt")
    with pytest.raises(Killed):
        fit(text_file, [SaveAndDie(after, path, hook)], None, num_workers, accumulate)

    resumed, trainer = fit(text_file, (), path, num_workers, accumulate)

    batch = after % 5  # batches since the epoch began
    lost = batch % accumulate  # batches with gradients not yet applied
    remaining = whole.seen[after - lost :]
    assert len(resumed.seen) == len(remaining)
    assert all(torch.equal(a, b) for a, b in zip(resumed.seen, remaining, strict=True))
    assert torch.equal(resumed.weight, whole.weight)
    assert trainer.global_step == 8
    if lost or hook == "batch_end":  # elsewhere Lightning itself counts the loggers' step twice
        assert trainer.fit_loop.epoch_loop._batches_that_stepped == 8


def test_epochs_cut_short_by_the_trainer_drop_no_rows(text_file):
    whole = fit_uninterrupted(text_file, 1)
    short, _ = fit(text_file, accumulate=1, limit_train_batches=3)
    assert len(whole.seen) == len(short.seen) == 8
    assert all(torch.equal(a, b) for a, b in zip(whole.seen, short.seen, strict=True))
