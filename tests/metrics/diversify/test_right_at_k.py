"""pass@k, maj@k, different right answers and solutions: by hand, by subsets, by expectation."""

import itertools
import math

import pytest
from jsonargparse import ArgumentParser

from triptych.metrics.diversify.prompt_metric import PromptMetric
from triptych.metrics.diversify.right_at_k import (
    CalculationSteps,
    RightAtK,
    distinct_at_k,
    majority_at_k,
    pass_at_k,
)


@pytest.mark.parametrize(
    ("n", "c", "k", "expected"),
    [(10, 3, 1, 0.3), (10, 3, 5, 1 - 21 / 252), (5, 0, 5, 0.0), (5, 1, 5, 1.0), (200, 199, 2, 1.0)],
)
def test_pass_at_k_by_hand(n, c, k, expected):
    assert pass_at_k(n, c, k) == pytest.approx(expected, abs=1e-12)
    assert math.isnan(pass_at_k(n, c, n + 1))


def test_pass_at_k_is_unbiased():
    """The expectation over all outcomes of seven samples is 1 - (1 - p)^k, exactly."""
    p, n = 0.23, 7
    for k in range(1, n + 1):
        mean = math.fsum(
            math.comb(n, c) * p**c * (1 - p) ** (n - c) * pass_at_k(n, c, k) for c in range(n + 1)
        )
        assert mean == pytest.approx(1 - (1 - p) ** k, abs=1e-12)


def test_distinct_at_k_is_the_mean_over_subsets():
    samples = ["a", "a", "b", "c", None, None]  # None: wrong
    for k in range(1, 7):
        subsets = list(itertools.combinations(samples, k))
        mean = sum(len(set(s) - {None}) for s in subsets) / len(subsets)
        assert distinct_at_k(6, [2, 1, 1], k) == pytest.approx(mean, abs=1e-12)


def test_majority_by_hand():
    answers = ["7", "8", "7", "8", "8", None]
    right = [True, False, True, False, False, False]
    assert majority_at_k(answers, right, 3) == 0.5  # 7, 8, 7: right; 8, 8, none: wrong
    assert majority_at_k(answers, right, 2) == pytest.approx((0.5 + 0.5 + 0.0) / 3)
    assert majority_at_k(answers, right, 4) == 0.5  # a tie; the last two make no block
    assert majority_at_k([None, None], [False, True], 2) == 0.0
    assert majority_at_k(answers, right, 1) == pytest.approx(2 / 6)


def test_a_set_of_prompts_by_hand():
    metric = RightAtK(ks=[1, 2], read_solution=CalculationSteps())
    metric.update(
        [["2+2=4", "So 2 + 2 = 4.", "1+3=4", "5"], ["9", "9"], ["8"]],
        scores=[[1, 1, 1, 0], [0.0, math.nan], [1.0]],
    )
    found = {name: float(value) for name, value in metric.compute().items()}
    # Prompts with 4, 1 and 1 scored samples: pairs exist in the first alone.
    assert found["pass_at_1"] == pytest.approx((0.75 + 0 + 1) / 3)
    assert found["pass_at_2"] == 1.0
    assert found["maj_at_2"] == pytest.approx((1.0 + 0.5) / 2)  # 1+3=4 against 5: a tie
    assert found["distinct_right_answers_at_2"] == pytest.approx(3 * 0.5)  # by whole texts
    assert found["distinct_right_solutions_at_2"] == pytest.approx(5 / 6 + 0.5)  # 2+2=4 twice


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("He has 3 * 4 = 12 apples, then 12 - 5 = 7.", "3*4=12 12-5=7"),
        ("3×4=12 and (12-5) = 7", "3*4=12 (12-5)=7"),
        ("It costs 1,200 / 4 = $300", "1200/4=300"),
        ("The answer is Seven.", "the answer is seven"),
    ],
)
def test_calculations_tell_solutions_apart(text, steps):
    assert CalculationSteps()(text) == steps.removeprefix("the ")


def test_it_is_built_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--metrics", type=list[PromptMetric])
    solution = {"class_path": "triptych.metrics.diversify.right_at_k.CalculationSteps"}
    answer = {
        "class_path": "triptych.metrics.diversify.distinct_answers.TaggedAnswer",
        "init_args": {"tag": "answer"},
    }
    init = {"ks": [1, 8], "right_score": 0.5, "read_solution": solution, "read_answer": answer}
    entry = {"class_path": "triptych.metrics.diversify.right_at_k.RightAtK", "init_args": init}
    (metric,) = parser.instantiate(parser.parse_object({"metrics": [entry]})).metrics
    assert metric.ks == [1, 8]
    assert metric.read_answer.tag == "answer"
    metric.update([["<answer>1</answer>"] * 8], scores=[[0.5] * 8])
    assert float(metric.compute()["pass_at_8"]) == 1


@pytest.mark.parametrize(
    "call",
    [
        lambda: RightAtK(ks=[]),
        lambda: RightAtK(ks=[0, 1]),
        lambda: RightAtK().update([["a"]]),
        lambda: RightAtK().update([["a", "b"]], [[1.0]]),
    ],
)
def test_mistakes_are_named(call):
    with pytest.raises(ValueError, match=r"at least 1|needs a score"):
        call()
