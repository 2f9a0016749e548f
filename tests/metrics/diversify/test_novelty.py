"""NoveltyBench's partition, distinct and utility against hand-computed values."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from triptych.metrics.diversify.novelty import (
    NoveltyBench,
    discounted_utility,
    partition,
    reward_score,
)
from triptych.metrics.diversify.same_class_judges import AnswerJudge, EmbeddingJudge
from triptych.objectives.text_embedder import letter_counts


def near(first: str, others: list[str]) -> list[bool]:
    """A judge that is not transitive: numbers that differ by at most 1."""
    return [abs(int(first) - int(other)) <= 1 for other in others]


def test_every_reply_is_compared_with_first_members_alone():
    # 2 joins 1; 3 is near 2 but not near 1, and so founds a class; 0 joins 1, the earlier class.
    assert partition(["1", "2", "3", "0", "4", "9", "2"], near) == [0, 0, 1, 0, 1, 2, 0]
    assert partition([], near) == []


@given(numbers=st.lists(st.integers(0, 12), max_size=14))
def test_partition_equals_one_reply_after_the_other(numbers: list[int]):
    firsts: list[int] = []
    expected = []
    for number in numbers:  # the same classes: join the earliest first member that is near
        place = next((i for i, first in enumerate(firsts) if abs(first - number) <= 1), None)
        if place is None:
            place = len(firsts)
            firsts.append(number)
        expected.append(place)
    assert partition([str(number) for number in numbers], near) == expected


def test_utility_by_hand():
    # Weights 1 .8 .64 .512; only the firsts of classes 0, 1 count: (10 + .64 * 5) / 2.952.
    assert discounted_utility([0, 0, 1, 0], [10, 9, 5, 8]) == pytest.approx(13.2 / 2.952)
    assert discounted_utility([0, 1], [4, 2], patience=1) == 3


@pytest.mark.parametrize(
    ("reward", "score"),
    [(-10, 1), (-7.71875, 1), (-7.7, 2), (-6, 3), (-5.9, 4), (-5.5, 5), (-3.4, 9), (-2, 10)],
)
def test_reward_scores(reward: float, score: int):
    assert reward_score(reward) == score


def test_metric_by_hand():
    metric = NoveltyBench()
    metric.update([["Oslo", "Rome", "the oslo"], ["a", "A."]], scores=[[10, 5, 7], [2, 9]])
    metric.update([["x", "y", "z"]])
    found = metric.compute()
    assert found["distinct"].item() == (2 + 1 + 3) / 3
    utilities = [(10 + 0.8 * 5) / 2.44, 2 / 1.8]
    assert found["utility"].item() == pytest.approx(sum(utilities) / 2)


def test_only_the_first_k_samples_count():
    metric = NoveltyBench(num_samples=2)
    metric.update([["a", "b", "c"], ["d", "d"]], scores=[[1, 2, 3], [4, 5]])
    assert metric.compute()["distinct"].item() == 1.5
    assert metric.compute()["utility"].item() == pytest.approx((2.6 / 1.8 + 4 / 1.8) / 2)
    with pytest.raises(ValueError, match="a prompt has 1 samples, num_samples is 2"):
        metric.update([["a"]])


def test_field_of_partitions_jsonl_is_one_less():
    samples = [["a", "b", "a"], ["c", "c"]]
    ours, field = NoveltyBench(), NoveltyBench(compat="partitions.jsonl")
    ours.update(samples)
    field.update(samples)
    assert ours.compute()["distinct"].item() == 1.5
    assert field.compute()["distinct"].item() == 0.5  # max([0, 1, 0]) = 1, max([0, 0]) = 0


def test_no_scores_leave_utility_undefined():
    metric = NoveltyBench(judge=EmbeddingJudge(embedder=letter_counts))
    metric.update([["abc", "cab!", "xyz"]])
    assert metric.compute()["distinct"].item() == 2
    assert math.isnan(metric.compute()["utility"])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NoveltyBench(patience=0), "patience=0"),
        (lambda: NoveltyBench(num_samples=0), "num_samples=0"),
        (lambda: NoveltyBench(compat="summary"), "partitions.jsonl"),
        (lambda: NoveltyBench(AnswerJudge()).update([["a", "b"]], [[1]]), "one score for each"),
        (lambda: NoveltyBench().update(["ab"]), "put it into a list"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
