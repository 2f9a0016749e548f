"""Slot scores against constants worked out by hand and formulas written in NumPy."""

from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from triptych.objectives.remember.slot_scores import (
    TableStatistics,
    accessed_scores,
    count_accesses,
    kl_scores,
    slot_scores,
    slots_by_share,
    tf_idf_scores,
    tf_scores,
    top_slots,
)

NUM_DOCUMENTS = 9
SLOTS = st.lists(
    # Accesses of the batch, document frequency, further accesses of the background.
    st.tuples(st.integers(0, 6), st.integers(0, NUM_DOCUMENTS), st.integers(0, 20)),
    min_size=1,
    max_size=12,
)


def columns(slots: list[tuple[int, int, int]]) -> tuple[torch.Tensor, TableStatistics]:
    counts, frequencies, further = torch.tensor(slots).T
    return counts, TableStatistics(frequencies, frequencies + further, NUM_DOCUMENTS)


def tf_idf_in_numpy(counts: np.ndarray, frequencies: np.ndarray, exponent: float) -> np.ndarray:
    """2510.15103, section 4, slot by slot."""
    scores = np.zeros(len(counts))
    for i, count in enumerate(counts):
        if count > 0:
            idf = np.log((NUM_DOCUMENTS + 1) / (frequencies[i] + 1))
            scores[i] = count / sum(counts) * idf**exponent
    return scores


def test_tf_idf_by_hand():
    counts = torch.tensor([6, 3, 1, 0, 2])
    frequencies = torch.tensor([0, 9, 99, 5, 99])
    scores = tf_idf_scores(counts, frequencies, num_documents=99)
    # 1/2 ln 100, 1/4 ln 10; the others are read in all documents, or not by this batch.
    assert scores.tolist() == pytest.approx([2.302585092994046, 0.5756462732485115, 0, 0, 0])
    assert scores[2:].tolist() == [0, 0, 0]
    squared = tf_idf_scores(counts, frequencies, num_documents=99, idf_exponent=2.0)
    assert squared.tolist() == pytest.approx([10.603796220956798, 1.3254745276195998, 0, 0, 0])


def test_a_slot_that_none_of_a_thousand_documents_reads_has_the_factor_of_the_paper():
    scores = tf_idf_scores(torch.tensor([5]), torch.tensor([0]), num_documents=1000)
    assert scores.item() == pytest.approx(6.908754779315221)  # ln 1001


def test_kl_by_hand():
    scores = kl_scores(torch.tensor([2, 2, 0]), torch.tensor([1, 0, 5]))
    # p = (1/2, 1/2, 0), q = (2, 1, 6) / 9: 1/2 ln(9/4) and 1/2 ln(9/2).
    assert scores.tolist() == pytest.approx([0.4054651081081644, 0.7520386983881371, 0])
    # p = (1/4, 3/4), q = (4, 4) / 8: the first is read less often than in the background.
    scores = kl_scores(torch.tensor([1, 3]), torch.tensor([1, 1]), smoothing=3.0)
    assert scores.tolist() == pytest.approx([-0.17328679513998632, 0.3040988310811233])


def test_tf_and_all_accessed_by_hand():
    counts = torch.tensor([0, 3, 1])
    assert tf_scores(counts).tolist() == [0, 0.75, 0.25]
    assert accessed_scores(counts).tolist() == [0, 1, 1]
    kept = torch.full((3,), float("nan"))
    assert tf_scores(counts, kept).data_ptr() == kept.data_ptr()
    assert kept.tolist() == [0, 0.75, 0.25]


@settings(max_examples=100, deadline=None)
@given(slots=SLOTS, exponent=st.sampled_from([1.0, 2.0, 2.5]))
def test_scores_equal_numpy(slots, exponent):
    counts, background = columns(slots)
    c, df, b = counts.numpy(), background.document_frequency_S.numpy(), background.counts_S.numpy()
    expected = tf_idf_in_numpy(c, df, exponent)
    found = slot_scores("tfidf", counts, background, idf_exponent=exponent)
    np.testing.assert_allclose(found.numpy(), expected, rtol=5e-7)
    if c.sum() > 0:
        p, q = c / c.sum(), (b + 1) / (b + 1).sum()
        divergence = sum(p[i] * (np.log(p[i]) - np.log(q[i])) for i in range(len(p)) if p[i] > 0)
        assert kl_scores(counts, background.counts_S).sum().item() == pytest.approx(divergence)


@settings(max_examples=100, deadline=None)
@given(slots=SLOTS, data=st.data())
def test_scores_follow_a_renumbering_of_slots(slots, data):
    order = data.draw(st.permutations(range(len(slots))))
    counts, background = columns(slots)
    renumbered, its_background = columns([slots[i] for i in order])
    for ranking in ("tfidf", "tf", "all"):
        scores = slot_scores(ranking, counts, background)
        assert torch.equal(slot_scores(ranking, renumbered, its_background), scores[order])
    scores = slot_scores("kl", counts, background)
    torch.testing.assert_close(slot_scores("kl", renumbered, its_background), scores[order])


@settings(max_examples=50, deadline=None)
@given(slots=SLOTS, factor=st.integers(2, 1000))
def test_scores_do_not_depend_on_how_much_was_read(slots, factor):
    counts, background = columns(slots)
    for ranking in ("tfidf", "tf", "kl", "all"):
        scores = slot_scores(ranking, counts, background)
        assert torch.equal(slot_scores(ranking, counts * factor, background), scores)


@settings(max_examples=100, deadline=None)
@given(slots=SLOTS, num_slots=st.integers(1, 12), share=st.floats(0.01, 1))
def test_no_slot_is_selected_unread_or_if_every_document_reads_it(slots, num_slots, share):
    counts, background = columns(slots)
    for ranking in ("tfidf", "tf", "kl", "all"):
        scores = slot_scores(ranking, counts, background)
        selections = [top_slots(scores, num_slots), slots_by_share(scores, share)]
        for rows in [*selections, top_slots(scores, None)]:
            assert (counts[rows] > 0).all()
            assert rows.dtype == torch.int64
            if ranking == "tfidf":
                assert (background.document_frequency_S[rows] < NUM_DOCUMENTS).all()
    everything = top_slots(accessed_scores(counts), None)
    assert everything.tolist() == [i for i, (count, *_) in enumerate(slots) if count > 0]


@settings(max_examples=200, deadline=None)
@given(
    values=st.lists(st.sampled_from([-1.0, 0.0, 0.125, 0.25, 0.5, 4.0]), min_size=1, max_size=15),
    num_slots=st.integers(1, 15),
    share=st.sampled_from([0.01, 0.25, 0.5, 0.75, 1.0]),
)
def test_selections_equal_a_sorted_list(values, num_slots, share):
    best_first = sorted((i for i, v in enumerate(values) if v > 0), key=lambda i: (-values[i], i))
    scores = torch.tensor(values, dtype=torch.float64)
    assert top_slots(scores, num_slots).tolist() == sorted(best_first[:num_slots])
    total = sum(values[i] for i in best_first)  # sums of powers of two: exact
    fewest = next(
        n
        for n in range(len(best_first) + 1)
        if sum(values[i] for i in best_first[:n]) >= share * total
    )
    assert slots_by_share(scores, share).tolist() == sorted(best_first[:fewest])


def test_equal_counts_tie_and_the_lower_ids_win():
    counts = torch.tensor([7, 5] * 50)
    background = TableStatistics(torch.tensor([3, 3] * 50), counts, num_documents=10)
    rows = top_slots(slot_scores("tfidf", counts, background, idf_exponent=2.5), 60)
    assert rows.tolist() == sorted([*range(0, 100, 2), *range(1, 20, 2)])


def test_a_share_is_reached_in_spite_of_rounding():
    scores = torch.full((5,), 0.7, dtype=torch.float64)
    assert float(scores.cumsum(0)[-1]) * 0.2 > 0.7  # by a rounding, one of five is not a fifth
    assert slots_by_share(scores, 0.2).tolist() == [0]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), num_slots=st.integers(1, 3), nan=st.none() | st.integers(0, 66))
@example(seed=0, num_slots=3, nan=1)
def test_the_best_of_a_table_larger_than_its_blocks(seed, num_slots, nan):
    """Equal scores within, between and behind blocks; a nan is never chosen and hides nothing."""
    draw = torch.Generator().manual_seed(seed)
    scores = torch.randint(0, 5, (67,), generator=draw).double()
    scores[0] = 5.0
    if nan is not None:
        scores[nan] = float("nan")
    positive = [slot for slot in range(67) if scores[slot] > 0]
    expected = sorted(positive, key=lambda slot: (-float(scores[slot]), slot))[:num_slots]
    assert top_slots(scores, num_slots).tolist() == sorted(expected)


def test_an_empty_batch_selects_nothing():
    counts = torch.zeros(4, dtype=torch.int64)
    background = TableStatistics(torch.zeros(4, dtype=torch.int64), counts, num_documents=2)
    for ranking in ("tfidf", "tf", "kl", "all"):
        scores = slot_scores(ranking, counts, background)
        assert scores.tolist() == [0, 0, 0, 0]
        assert top_slots(scores, 3).numel() == slots_by_share(scores, 0.5).numel() == 0


def test_large_backgrounds_are_counted_exactly():
    """Above 2^24, where float32 no longer tells neighbours apart."""
    counts, background_counts = torch.tensor([1, 1]), torch.tensor([2**25, 2**25 + 1])
    more, fewer = kl_scores(counts, background_counts).tolist()
    assert more > fewer


@settings(max_examples=50, deadline=None)
@given(
    tokens=st.lists(
        st.tuples(st.lists(st.integers(0, 9), min_size=4, max_size=4), st.booleans()), max_size=8
    )
)
def test_counts_equal_a_dictionary_and_leave_padding_out(tokens):
    ids_1THK = torch.tensor([ids for ids, _ in tokens], dtype=torch.int64).view(1, -1, 2, 2)
    keep_1T11 = torch.tensor([kept for _, kept in tokens], dtype=torch.bool).view(1, -1, 1, 1)
    expected = Counter(slot for ids, kept in tokens if kept for slot in ids)
    counts = count_accesses(ids_1THK, keep_1T11, num_slots=10)
    assert counts.tolist() == [expected[slot] for slot in range(10)]
    assert counts.dtype == torch.int64
    assert count_accesses(ids_1THK, None, 10).sum() == 4 * len(tokens)


@pytest.mark.parametrize(
    ("slot_ids", "keep_mask", "message"),
    [
        (torch.tensor([0, 4]), None, r"\[0, 4\), got ids from 0 to 4"),
        (torch.tensor([0.0]), None, "must be integers"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3), "must be boolean"),
        (torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, dtype=torch.bool), "does not fit"),
    ],
)
def test_counting_explains_mistakes(slot_ids, keep_mask, message):
    with pytest.raises(ValueError, match=message):
        count_accesses(slot_ids, keep_mask, num_slots=4)


def test_scoring_explains_mistakes():
    counts = torch.tensor([1, 2])
    other_table = TableStatistics(torch.tensor([1, 2, 0]), torch.tensor([1, 2, 0]), 2)
    for ranking in ("tfidf", "kl"):
        with pytest.raises(ValueError, match=r"background_statistics\.yaml"):
            slot_scores(ranking, counts)
        with pytest.raises(ValueError, match="the same table"):
            slot_scores(ranking, counts, other_table)
    with pytest.raises(ValueError, match="choose tfidf, tf, kl or all"):
        slot_scores("bm25", counts)
    with pytest.raises(ValueError, match="ranking: tf"):
        tf_idf_scores(counts, counts, 2, idf_exponent=0.0)
    with pytest.raises(ValueError, match="above 0"):
        kl_scores(counts, counts, smoothing=0.0)
    with pytest.raises(ValueError, match="at least 1 slot"):
        top_slots(counts, 0)
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(ValueError, match="at most 1"):
            slots_by_share(counts, share)
