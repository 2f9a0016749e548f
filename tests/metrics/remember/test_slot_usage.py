"""Slot usage against hand-computed values and a count by dictionary."""

import math
from collections import Counter

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.metrics.remember.slot_usage import SlotUsage


def test_usage_by_hand():
    usage = SlotUsage(num_slots=8)
    usage.update(torch.tensor([[[0, 1], [0, 2]], [[0, 3], [0, 1]]]))
    # Reads: 4, 2, 1, 1 of 8. Entropy: 1/2 ln 2 + 1/4 ln 4 + 2/8 ln 8 = 1.75 ln 2.
    values = {name: value.item() for name, value in usage.compute().items()}
    assert values == pytest.approx(
        {
            "slots_read_share": 0.5,
            "usage_entropy_nats": 1.2130075659799042,
            "usage_perplexity_share": 2**1.75 / 8,
            "most_read_share": 0.5,
        }
    )
    assert usage.num_reads.tolist() == [4, 2, 1, 1, 0, 0, 0, 0]


def test_even_use_is_all_ones_and_one_slot_is_all_of_it():
    even, single = SlotUsage(num_slots=5), SlotUsage(num_slots=5)
    even.update(torch.arange(5).repeat(7))
    single.update(torch.full((7,), 3))
    assert even.compute()["usage_entropy_nats"].item() == pytest.approx(math.log(5))
    assert even.compute()["usage_perplexity_share"].item() == pytest.approx(1)
    assert even.compute()["slots_read_share"].item() == 1
    assert single.compute()["usage_entropy_nats"].item() == 0
    assert single.compute()["usage_perplexity_share"].item() == pytest.approx(1 / 5)
    assert single.compute()["most_read_share"].item() == 1


@settings(max_examples=50, deadline=None)
@given(
    rows=st.lists(st.tuples(st.lists(st.integers(0, 9), min_size=3, max_size=3), st.booleans())),
    num_kept=st.integers(1, 10),
)
def test_counts_equal_a_dictionary(rows: list[tuple[list[int], bool]], num_kept: int):
    usage = SlotUsage(num_slots=10)
    ids = torch.tensor([ids for ids, _ in rows], dtype=torch.int32).view(-1, 3)
    usage.update(ids, torch.tensor([kept for _, kept in rows], dtype=torch.bool).view(-1, 1))
    counts = Counter(slot for ids, kept in rows if kept for slot in ids)
    assert usage.num_reads.tolist() == [counts[slot] for slot in range(10)]
    ranking = sorted(range(10), key=lambda slot: (-counts[slot], slot))[:num_kept]
    slot_ids, num_reads = usage.most_read(num_kept)
    assert slot_ids.tolist() == ranking
    assert num_reads.tolist() == [counts[slot] for slot in ranking]


def test_a_token_mask_reaches_all_its_heads_and_slots():
    usage = SlotUsage(num_slots=50)
    slot_ids_BTHk = torch.arange(48).view(2, 3, 4, 2)
    keep_mask_BT = torch.tensor([[True, False, False], [False, False, True]])
    usage.update(slot_ids_BTHk, keep_mask_BT[:, :, None, None])
    assert usage.num_reads.nonzero().squeeze(1).tolist() == [*range(8), *range(40, 48)]


def test_no_accesses_read_no_slots():
    usage = SlotUsage(num_slots=3)
    usage.update(torch.tensor([[1]]), torch.tensor([[False]]))
    values = usage.compute()
    assert values.pop("slots_read_share").item() == 0
    assert all(value.isnan() for value in values.values())
    assert usage.most_read(1)[1].tolist() == [0]


def test_counts_survive_a_switch_out_of_inference_mode():
    usage = SlotUsage(num_slots=3)
    with torch.inference_mode():
        usage.update(torch.tensor([0]))
    usage.update(torch.tensor([0, 2]))
    assert usage.num_reads.tolist() == [2, 0, 1]


@pytest.mark.parametrize(
    ("slot_ids", "keep_mask", "message"),
    [
        (torch.tensor([0, 4]), None, r"\[0, 4\), got ids from 0 to 4"),
        (torch.tensor([-1, 2]), None, r"\[0, 4\), got ids from -1 to 2"),
        (torch.tensor([0.0]), None, "must be integers"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3), "must be boolean"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(3, dtype=torch.bool), "does not fit"),
        (torch.zeros(2, 1, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool), "does not fit"),
    ],
)
def test_mistakes_are_explained_and_not_counted(slot_ids, keep_mask, message):
    usage = SlotUsage(num_slots=4)
    with pytest.raises(ValueError, match=message):
        usage.update(slot_ids, keep_mask)
    assert not usage.num_reads.any()


@pytest.mark.parametrize("num_kept", [0, 5])
def test_most_read_cannot_return_more_slots_than_there_are(num_kept: int):
    with pytest.raises(ValueError, match=r"\[1, 4\]"):
        SlotUsage(num_slots=4).most_read(num_kept)


def test_a_memory_has_slots():
    with pytest.raises(ValueError, match="at least 1"):
        SlotUsage(num_slots=0)
