"""Entropy and coverage of known modes against hand-computed values."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.metrics.diversify.mode_coverage import (
    ModeCoverage,
    entropy_bits,
    equal_answer,
    first_match,
)


@pytest.mark.parametrize(
    ("text", "mode"),
    [
        ("1", 0),
        ("I choose 2, not 1.", 1),
        ("12", 2),  # a whole word
        ("TWELVE or 1", 2),
        ("121", None),
        ("one hundred", 3),  # begins with another mode's name: the longer wins
        ("one", 0),
        ("C++!", 4),
        ("", None),
    ],
)
def test_first_match(text: str, mode: int | None):
    modes = [["1", "one"], ["2"], ["12", "twelve"], ["one hundred"], ["c++"]]
    assert first_match(text, modes) == mode


def test_equal_answer():
    modes = [["Nile", "Nile River"], ["Rhine"]]
    found = [equal_answer(text, modes) for text in ["the nile.", "Nile river", "RHINE", "Nile!?x"]]
    assert found == [0, 0, 1, None]


def test_entropy_by_hand():
    assert entropy_bits([1, 1, 1, 1, 0]) == 2
    assert entropy_bits([3, 1]) == pytest.approx(0.8112781244591328)
    assert math.isnan(entropy_bits([0, 0]))


@given(counts=st.lists(st.integers(0, 50), min_size=1, max_size=8))
def test_entropy_equals_torch(counts: list[int]):
    expected = torch.distributions.Categorical(
        probs=torch.tensor(counts, dtype=torch.float64), validate_args=False
    ).entropy() / math.log(2)
    if sum(counts):
        assert entropy_bits(counts) == pytest.approx(expected.item(), abs=1e-9)


def test_modes_of_each_prompt():
    metric = ModeCoverage()
    metric.update(
        [["Oslo", "Bergen", "Oslo", "Rome"], ["a b", "c"], ["x"]],
        [["Oslo", "Bergen", "Tromsø", "Bodø"], ["b", ["c", "see"]], ["y"]],
    )
    found = {name: value.item() for name, value in metric.compute().items()}
    entropy = math.log2(3) - 2 / 3  # of 2/3, 1/3
    assert found == pytest.approx(
        {
            "mode_entropy_bits": (entropy + 1) / 2,  # the last prompt has none
            "mode_coverage": (2 / 4 + 1 + 0) / 3,
            "no_mode_share": (1 / 4 + 0 + 1) / 3,
        }
    )


def test_all_prompts_together_where_their_modes_are_the_same():
    metric = ModeCoverage(modes=["1", "2"])
    metric.update([["1", "1"], ["2", "2"]])
    metric.update([["1", "neither"]])
    found = {name: value.item() for name, value in metric.compute().items()}
    assert found == pytest.approx(
        {
            "mode_entropy_bits": 0.0,  # every prompt collapses
            "mode_coverage": 0.5,
            "no_mode_share": 1 / 6,
            "overall_mode_entropy_bits": entropy_bits([3, 2]),  # and all of them do not
            "overall_mode_coverage": 1.0,
            "overall_no_mode_share": 1 / 6,
        }
    )


def test_a_mapping_of_ones_own():
    metric = ModeCoverage(modes=["even", "odd"], find_mode=lambda text, modes: len(text) % 2)
    metric.update([["ab", "abc", "abcd", "a"]])
    assert metric.compute()["mode_entropy_bits"].item() == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ModeCoverage(modes=[]), "at least one mode"),
        (lambda: ModeCoverage(modes="12"), "put it into a list"),
        (lambda: ModeCoverage(modes=["1", ""]), "non-empty names"),
        (lambda: ModeCoverage(modes=["1", []]), "non-empty names"),
        (lambda: ModeCoverage().update([["a"]]), "needs the known modes once"),
        (lambda: ModeCoverage(["1"]).update([["a"]], [["1"]]), "needs the known modes once"),
        (lambda: ModeCoverage().update([["a"]], [["1"], ["2"]]), "modes for 2 prompts"),
        (lambda: ModeCoverage(["1"]).update([["1"], []]), "prompt 1 has no samples"),
    ],
)
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()
