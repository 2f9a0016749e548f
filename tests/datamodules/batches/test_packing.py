"""Cutting, packing and collating, against their contracts and hand-computed rows."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.datamodules.batches.packing import (
    Document,
    DocumentSource,
    best_fit,
    collate_padded,
    collate_rows,
    pack_epoch,
    split_long,
)

NUM_BYTES = np.array([0, 0, 0, *range(1, 200)], dtype=np.int32)  # ids 0 to 2 are special


class Lengths(DocumentSource):
    """Documents of given lengths, with tokens numbered throughout the source."""

    name = "numbers"

    def __init__(self, lengths, splittable=True):
        self._bounds = np.concatenate([[0], np.cumsum(lengths)])
        self.splittable = splittable

    def __len__(self):
        return len(self._bounds) - 1

    def document(self, index, epoch):
        ids = np.arange(self._bounds[index], self._bounds[index + 1])
        return Document(ids, ids)


def document(*ids, labels=None):
    return Document(np.array(ids), np.array(ids if labels is None else labels))


lengths = st.lists(st.integers(2, 40), min_size=1, max_size=30)


@given(length=st.integers(2, 60), context_length=st.integers(2, 20))
def test_windows_predict_every_token_but_the_first_exactly_once(length, context_length):
    windows = split_long(document(*range(length)), context_length)
    predicted = [label for window in windows for label in window.labels.tolist() if label != -100]
    assert predicted == list(range(1, length))
    assert all(2 <= len(window) <= context_length for window in windows)
    for before, after in pairwise(windows):
        assert before.ids[-1] == after.ids[0]


def test_windows_of_a_document_by_hand():
    windows = split_long(document(5, 6, 7, 8, 9, 10), 3)
    assert [window.ids.tolist() for window in windows] == [[5, 6, 7], [7, 8, 9], [9, 10]]
    assert [window.labels.tolist() for window in windows] == [
        [-100, 6, 7],
        [-100, 8, 9],
        [-100, 10],
    ]


@given(lengths=lengths, context_length=st.integers(2, 20), epoch=st.integers(0, 3))
def test_an_epoch_predicts_every_token_once_and_rows_fit(lengths, context_length, epoch):
    rows = pack_epoch(Lengths(lengths), epoch, 7, context_length)
    segments = [rows.row(index) for index in range(len(rows))]
    assert all(0 < sum(map(len, row)) <= context_length for row in segments)
    predicted = sorted(
        label for row in segments for part in row for label in part.labels if label != -100
    )
    firsts = set(np.cumsum([0, *lengths[:-1]]).tolist())
    assert predicted == [token for token in range(sum(lengths)) if token not in firsts]
    assert rows.num_tokens == sum(len(part) for row in segments for part in row)


@settings(max_examples=30)
@given(lengths=lengths)
def test_the_order_depends_on_seed_and_epoch_alone(lengths):
    def order(epoch, seed):
        rows = pack_epoch(Lengths(lengths), epoch, seed, 16)
        return [part.ids.tolist() for index in range(len(rows)) for part in rows.row(index)]

    assert order(1, 2) == order(1, 2)
    assert sorted(order(0, 2)) == sorted(order(1, 2)) == sorted(order(0, 3))


def test_epochs_and_seeds_differ():
    source = Lengths([9] * 40)
    orders = [pack_epoch(source, epoch, seed, 16).documents_S for epoch, seed in [(0, 0), (1, 0)]]
    orders.append(pack_epoch(source, 0, 1, 16).documents_S)
    assert len({tuple(order) for order in orders}) == 3


def test_windows_of_a_long_document_are_spread_over_the_epoch():
    rows = pack_epoch(Lengths([16 * 50]), 0, 0, 16)
    starts = [rows.row(index)[0].ids[0] for index in range(len(rows))]
    assert starts != sorted(starts)


@given(sizes=st.lists(st.integers(2, 16), min_size=1, max_size=200))
def test_best_fit_wastes_little(sizes):
    rows = best_fit(np.array(sizes), 16)
    filled = np.bincount(rows, weights=sizes)
    assert filled.max() <= 16
    assert sum(fill <= 8 for fill in filled) <= 1  # two half-empty rows would have been one


def test_packing_leaves_little_padding_on_mixed_lengths():
    sizes = np.random.default_rng(0).integers(5, 120, size=20_000)
    rows = pack_epoch(Lengths(sizes), 0, 0, 128)
    assert rows.num_tokens / (len(rows) * 128) > 0.98


def test_rows_by_hand():
    rows = [[document(1, 3, 4), document(1, 5)], [document(6, 7, 8, 2, labels=[-100, -100, 8, 2])]]
    batch = collate_rows(rows, [0, 1], context_length=6, pad_id=2, token_num_bytes=NUM_BYTES)
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[1, 3, 4, 1, 5, 2], [6, 7, 8, 2, 2, 2]],
        "labels": [[-100, 3, 4, -100, 5, -100], [-100, -100, 8, 2, -100, -100]],
        "position_ids": [[0, 1, 2, 0, 1, 0], [0, 1, 2, 3, 0, 0]],
        "segment_ids": [[1, 1, 1, 2, 2, 0], [1, 1, 1, 1, 0, 0]],
        "num_bytes": [[0, 1, 2, 0, 3, 0], [4, 5, 6, 0, 0, 0]],
        "source_ids": [0, 1],
    }
    assert batch["num_bytes"].dtype == torch.int32
    assert all(batch[name].dtype == torch.int64 for name in batch if name != "num_bytes")


def test_padded_rows_are_as_wide_as_the_longest_document():
    batch = collate_padded(
        [document(1, 3, 2), document(1, 3)],
        [1, 1],
        context_length=8,
        pad_id=0,
        token_num_bytes=NUM_BYTES,
    )
    assert batch["input_ids"].tolist() == [[1, 3, 2], [1, 3, 0]]
    assert batch["labels"].tolist() == [[-100, 3, 2], [-100, 3, -100]]


def test_a_document_wider_than_the_context_is_not_padded():
    with pytest.raises(ValueError, match=r"3 tokens does not fit.*at least 3"):
        collate_padded(
            [document(1, 3, 2)], [0], context_length=2, pad_id=0, token_num_bytes=NUM_BYTES
        )


def test_a_context_of_one_token_is_refused():
    with pytest.raises(ValueError, match=r"context_length is 1.*larger"):
        pack_epoch(Lengths([4]), 0, 0, 1)


def test_a_document_that_may_not_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"document 1 of 'numbers' has 9 tokens.*at least 9"):
        pack_epoch(Lengths([4, 9], splittable=False), 0, 0, 8)


def test_an_empty_source_is_refused():
    with pytest.raises(ValueError, match="'numbers' has no documents"):
        pack_epoch(Lengths([]), 0, 0, 8)
