"""Multiple choice against hand-computed values and a scoring with numpy."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triptych.metrics.remember.multiple_choice import MultipleChoice, likeliest_ending


def test_by_hand():
    metric = MultipleChoice()
    # Per byte: 6/12 = .5 against 4/4 = 1, so the longer ending wins there, and is the right one.
    metric.update([[6.0, 4.0]], [[12, 4]], [[3, 1]], [0])
    # The right one is likeliest as a whole; per byte 2/2 = 1 loses to 3/30 = .1.
    metric.update([[3.0, 2.0, 9.0]], [[30, 2, 9]], [[7, 1, 3]], [1])
    # Wrong either way.
    metric.update([[1.0, 5.0]], [[4, 5]], [[2, 2]], [1])
    values = {name: value.item() for name, value in metric.compute().items()}
    assert values == pytest.approx(
        {
            "accuracy": 1 / 3,
            "length_normalized_accuracy": 1 / 3,
            "right_nll_nats_per_token": (6 + 2 + 5) / (3 + 1 + 2),
        }
    )
    assert (metric.num_right.item(), metric.num_right_per_byte.item()) == (1, 1)


def test_equal_endings_give_the_first():
    assert likeliest_ending([2.0, 1.0, 1.0]) == 1
    assert likeliest_ending([2.0, 4.0], [1, 2]) == 0


QUESTION = st.integers(2, 5).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(0.1, 50), min_size=n, max_size=n),
        st.lists(st.integers(1, 40), min_size=n, max_size=n),
        st.lists(st.integers(1, 9), min_size=n, max_size=n),
        st.integers(0, n - 1),
    )
)


@settings(max_examples=100, deadline=None)
@given(questions=st.lists(QUESTION, min_size=1, max_size=6))
def test_it_equals_the_harness_rules(questions):
    """`acc` is argmax of the log-likelihoods, `acc_bytes` argmax of them over the bytes."""
    right = [int(np.argmax(-np.array(nll)) == label) for nll, _, _, label in questions]
    per_byte = [
        int(np.argmax(-np.array(nll) / np.array(sizes)) == label)
        for nll, sizes, _, label in questions
    ]
    metric = MultipleChoice()
    metric.update(*zip(*questions, strict=True))
    values = metric.compute()
    assert values["accuracy"].item() == pytest.approx(np.mean(right))
    assert values["length_normalized_accuracy"].item() == pytest.approx(np.mean(per_byte))


def test_nothing_is_nan():
    assert all(value.isnan() for value in MultipleChoice().compute().values())


def test_mistakes_are_explained_and_nothing_is_counted():
    metric = MultipleChoice()
    with pytest.raises(ValueError, match="with label 2"):
        metric.update([[1.0, 2.0], [1.0, 2.0]], [[1, 1]] * 2, [[1, 1]] * 2, [0, 2])
    with pytest.raises(ValueError, match="with label -1"):
        metric.update([[1.0, 2.0]], [[1, 1]], [[1, 1]], [-1])
    with pytest.raises(ValueError, match="2 likelihoods, 1 lengths"):
        metric.update([[1.0, 2.0]], [[1]], [[1, 1]], [0])
    with pytest.raises(ValueError, match="questions for 2 labels"):
        metric.update([[1.0, 2.0]], [[1, 1]], [[1, 1]], [0, 0])
    assert metric.num_questions == 0
