"""Batches by length: every row once, items together, as many batches on each process."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.datamodules.batches.length_batches import left_padded, length_batches
from triptych.datamodules.batches.resumable_loader import Shard


def test_by_hand():
    # Longest first; 12 tokens hold one row of 10, or two of 6, or two of 5 and of 4.
    found = length_batches([4, 10, 6, 5, 6], [0, 1, 2, 3, 4], 12, Shard())
    assert [batch.rows for batch in found] == [(1,), (2, 4), (3, 0)]
    assert all(batch.counts for batch in found)


def test_a_row_longer_than_the_budget_is_alone():
    assert [b.rows for b in length_batches([50, 3, 3], [0, 1, 2], 6, Shard())] == [(0,), (1, 2)]


def test_items_are_dealt_out_from_the_longest_down():
    # Items by longest row: 2 (9), 0 (7), 1 (4). Rank 0 gets 2 and 1, rank 1 gets 0.
    lengths, items = [2, 7, 4, 9, 3], [0, 0, 1, 2, 1]
    ranks = [length_batches(lengths, items, 10, Shard(rank, 2)) for rank in range(2)]
    assert [b.rows for b in ranks[0]] == [(3,), (2, 4)]
    assert [(b.rows, b.counts) for b in ranks[1]] == [((1,), True), ((0,), True)]


def test_a_process_without_rows_is_kept_busy_but_not_counted():
    ranks = [length_batches([5, 5], [0, 0], 5, Shard(rank, 2)) for rank in range(2)]
    assert [(b.rows, b.counts) for b in ranks[0]] == [((0,), True), ((1,), True)]
    assert [b.counts for b in ranks[1]] == [False, False]
    assert length_batches([], [], 5, Shard(1, 2)) == []


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(1, 20), st.integers(0, 6)), min_size=1, max_size=25),
    budget=st.integers(1, 60),
    world_size=st.integers(1, 4),
)
def test_every_row_is_met_once(rows, budget, world_size):
    lengths, items = zip(*rows, strict=True)
    plans = [
        length_batches(lengths, items, budget, Shard(rank, world_size))
        for rank in range(world_size)
    ]
    assert len({len(plan) for plan in plans}) == 1
    counted = [[row for batch in plan if batch.counts for row in batch.rows] for plan in plans]
    assert sorted(row for own in counted for row in own) == list(range(len(rows)))
    for item in set(items):
        assert sum(any(items[row] == item for row in own) for own in counted) == 1
    for plan in plans:
        for batch in plan:
            padded = len(batch.rows) * max(lengths[row] for row in batch.rows)
            assert padded <= budget or len(batch.rows) == 1


def test_prompts_end_together():
    ids, mask = left_padded([np.array([7, 8, 9], np.int32), np.array([5], np.int32)], pad_id=2)
    assert ids.tolist() == [[7, 8, 9], [2, 2, 5]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]
    assert ids.dtype == mask.dtype
    assert str(ids.dtype) == "torch.int64"


@pytest.mark.parametrize("length", [1, 4])
def test_one_prompt_needs_no_padding(length):
    ids, mask = left_padded([np.arange(length)], pad_id=9)
    assert ids.tolist() == [list(range(length))]
    assert mask.tolist() == [[1] * length]
