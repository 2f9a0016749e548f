"""Visits: their order and numbers, their batches on one and several processes, and resuming."""

import itertools
import pickle

import numpy as np
import pytest
import torch

from triptych.datamodules.batches.packing import Document
from triptych.datamodules.batches.resumable_loader import ResumableLoader, Shard
from triptych.datamodules.batches.visits import VisitCollate, VisitSource, VisitStream


def stream(num_items=5, items_per_visit=2, steps_per_visit=2, shuffle=False, seed=0):
    return VisitStream(num_items, items_per_visit, steps_per_visit, shuffle, seed)


def planned(a_stream, count, cursor=None):
    return list(itertools.islice(a_stream.read(cursor), count))


def test_visits_are_numbered_over_passes_and_repeated_in_place():
    rows = [row for row, _ in planned(stream(), 8)]
    assert [(row.number, row.pass_number, row.items) for row in rows] == [
        (0, 0, (0, 1)), (0, 0, (0, 1)),
        (1, 0, (2, 3)), (1, 0, (2, 3)),
        (2, 0, (4,)), (2, 0, (4,)),
        (3, 1, (0, 1)), (3, 1, (0, 1)),
    ]  # fmt: skip
    assert stream().visits_per_pass == 3
    assert stream().num_rows() == 6


def test_every_pass_has_an_order_of_its_own_and_visits_each_item_once():
    shuffled = stream(num_items=30, items_per_visit=4, steps_per_visit=1, shuffle=True, seed=7)
    rows = [row for row, _ in planned(shuffled, 16)]
    first = [item for row in rows[:8] for item in row.items]
    second = [item for row in rows[8:] for item in row.items]
    assert sorted(first) == sorted(second) == list(range(30))
    assert first != second
    again = stream(num_items=30, items_per_visit=4, steps_per_visit=1, shuffle=True, seed=7)
    assert [row for row, _ in planned(again, 16)] == rows
    other = stream(num_items=30, items_per_visit=4, steps_per_visit=1, shuffle=True, seed=8)
    assert [row for row, _ in planned(other, 16)] != rows


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("stopped_after", range(1, 14))
def test_a_cursor_leads_to_what_followed(stopped_after, shuffle):
    whole = planned(stream(shuffle=shuffle), 20)
    cursor = whole[stopped_after - 1][1]
    rest = planned(stream(shuffle=shuffle), 20 - stopped_after, pickle.loads(pickle.dumps(cursor)))
    assert rest == whole[stopped_after:]


class CountedItems(VisitSource):
    """Item i has i + 1 documents; a document's tokens are item, number, pass."""

    def __init__(self, num_items: int) -> None:
        self.ids = [f"item {index}" for index in range(num_items)]

    def documents(self, index: int, pass_number: int) -> list[Document]:
        ids = [np.array([index, number, pass_number]) for number in range(index + 1)]
        return [Document(i, i) for i in ids]


class PaddedFormat:
    """A stand-in for a `RowFormat`: rows of three tokens."""

    def collate_padded(self, documents):
        return {"input_ids": torch.tensor(np.stack([document.ids for document in documents]))}


def collate(shard=None):
    return VisitCollate(CountedItems(5), PaddedFormat(), shard or Shard())


def batches(count, shard=None, **options):
    loader = ResumableLoader(stream(**options), collate(shard), batch_size=1, rows_per_epoch=10**6)
    return list(itertools.islice(iter(loader), count))


def test_a_batch_holds_all_documents_of_its_visit_one_a_row():
    batch = batches(3)[2]
    assert batch["input_ids"].tolist() == [
        [2, 0, 0], [2, 1, 0], [2, 2, 0],
        [3, 0, 0], [3, 1, 0], [3, 2, 0], [3, 3, 0],
    ]  # fmt: skip
    assert batch["group"].tolist() == [2, 2, 2, 3, 3, 3, 3]
    assert batch["group"].dtype == torch.int64
    assert batch["visit"].shape == ()
    assert batch["visit"].item() == 1
    assert batch["fact_ids"] == ["item 2", "item 3"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_processes_share_out_the_documents_of_a_visit(world_size):
    alone = batches(12)
    ranks = [batches(12, Shard(rank, world_size)) for rank in range(world_size)]
    for number, batch in enumerate(alone):
        parts = [rank[number] for rank in ranks]
        assert {part["visit"].item() for part in parts} == {batch["visit"].item()}
        assert all(part["fact_ids"] == batch["fact_ids"] for part in parts)
        rows = [tuple(row) for part in parts for row in part["input_ids"].tolist()]
        assert set(rows) == {tuple(row) for row in batch["input_ids"].tolist()}
        assert len(rows) == max(world_size, len(batch["input_ids"]))
        for part in parts:
            assert part["group"].tolist() == part["input_ids"][:, 0].tolist()


def test_a_process_without_a_document_of_its_own_reads_one_of_the_others():
    ranks = [batches(2, Shard(rank, 3), items_per_visit=1)[0] for rank in range(3)]
    assert [rank["input_ids"].tolist() for rank in ranks] == [[[0, 0, 0]]] * 3


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("stopped_after", [1, 3, 6, 7])
def test_the_loader_goes_on_in_the_middle_of_a_visit(stopped_after, num_workers):
    def loader():
        return ResumableLoader(
            stream(shuffle=True), collate(), batch_size=1, rows_per_epoch=6, num_workers=num_workers
        )

    def read(a_loader, count):
        epochs = itertools.chain.from_iterable(iter(a_loader) for _ in itertools.count())
        return list(itertools.islice(epochs, count))

    uninterrupted = batches(12, shuffle=True)
    first, second = loader(), loader()
    assert len(first) == 6
    read(first, stopped_after)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    for resumed, expected in zip(
        read(second, 12 - stopped_after), uninterrupted[stopped_after:], strict=True
    ):
        assert resumed.keys() == expected.keys()
        assert resumed["fact_ids"] == expected["fact_ids"]
        for key in ("input_ids", "group", "visit"):
            assert torch.equal(resumed[key], expected[key])
