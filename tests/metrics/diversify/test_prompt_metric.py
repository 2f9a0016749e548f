"""Samples of prompts: grouping, exact means, and texts that survive the way through a tensor."""

import math
from collections.abc import Mapping, Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.metrics.diversify.prompt_metric import PooledTextMetric, exact_mean, samples_by_group


class Joined(PooledTextMetric):
    """Remembers what it was asked to measure."""

    seen: Sequence[str] = ()

    def __init__(self) -> None:
        super().__init__(["length"], overall=True)

    @classmethod
    def example(cls):
        raise NotImplementedError

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        self.seen = list(texts)
        return {"length": sum(map(len, texts))}


@given(samples=st.lists(st.lists(st.text(), min_size=1, max_size=3), min_size=1, max_size=4))
def test_any_text_comes_back_as_it_was(samples: list[list[str]]):
    metric = Joined()
    metric.update(samples)
    metric.compute()
    assert metric.seen == [text for of_prompt in samples for text in of_prompt]


def test_positions_order_the_prompts_and_not_their_samples():
    metric = Joined()
    metric.update([["c", "b"], ["a"]], [7, 2])
    metric.update([["z", "y"]], [5])
    assert metric.compute()["overall_length"].item() == 5
    assert metric.seen == ["a", "z", "y", "c", "b"]


def test_groups_of_a_rollout():
    assert samples_by_group(["a", "b", "c", "d"], torch.tensor([3, 0, 3, 1])) == [
        ["a", "c"],
        ["b"],
        ["d"],
    ]
    with pytest.raises(ValueError, match="1 texts and 2 group numbers"):
        samples_by_group(["a"], torch.tensor([0, 1]))


def test_means_are_exact_and_leave_out_what_is_not_defined():
    assert exact_mean([1e16, 1.0, -1e16, math.nan]) == 1 / 3
    assert math.isnan(exact_mean([math.nan]))
