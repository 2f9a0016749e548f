"""Yield and oracle burden by hand."""

import math

import pytest
import torch

from triptych.metrics.diversify.molecules.oracle_calls import (
    OracleBurden,
    Yield,
    format_burden,
    summarize_burdens,
)

SMILES = ["CCO", "CCC", "OCC", "CCN", "C1CC", "CCF", "CCCl"]
REWARDS = [0.9, 0.1, 0.9, 0.8, 1.0, 0.79, 0.95]
CALLS = [1, 2, 1, 3, 4, 5, 6]  # the third string is the first molecule again


def test_yield_counts_different_valid_molecules_that_reach_the_threshold():
    metric = Yield(0.8)
    metric.update(SMILES, REWARDS)
    assert metric.compute() == 3  # CCO, CCN, CCCl


def test_a_threshold_is_reached_by_its_float32():
    metric = Yield(0.7)  # float32(0.7) is below 0.7
    metric.update(["C"], torch.tensor([0.7]))
    assert metric.compute() == 1
    metric.update(["CC", "CCC"], torch.tensor([0.69, math.nan]))
    assert metric.compute() == 1


@pytest.mark.parametrize(("num_hits", "expected"), [(1, 1), (2, 3), (3, 6), (4, math.inf)])
def test_burden_is_the_call_of_the_nth_hit(num_hits, expected):
    metric = OracleBurden(num_hits, 0.8)
    metric.update(SMILES[3:], REWARDS[3:], CALLS[3:])
    metric.update(SMILES[:3], REWARDS[:3], torch.tensor(CALLS[:3]))
    assert metric.compute().item() == expected


def test_a_burden_that_was_not_reached_is_never_a_number():
    assert format_burden(math.inf, 3000) == ">3,000"
    assert format_burden(2999.0, 3000) == "2,999"
    assert summarize_burdens([1.0, math.inf, 3.0], 10) == "2 (2 of 3 seeds; the others >10)"
    assert summarize_burdens([1.0, 3.0], 10) == "2 (all 2 seeds)"
    assert summarize_burdens([math.inf, math.inf], 10) == ">10 (0 of 2 seeds)"


def test_mistakes():
    with pytest.raises(ValueError, match="num_hits is 0"):
        OracleBurden(0, 0.5)
    with pytest.raises(ValueError, match="threshold is nan"):
        Yield(math.nan)
    with pytest.raises(ValueError, match="Yield got 1 rewards for 2 SMILES"):
        Yield(0.5).update(["C", "CC"], [1.0])
    with pytest.raises(ValueError, match="got 1 call numbers for 2 SMILES"):
        OracleBurden(1, 0.5).update(["C", "CC"], [1.0, 1.0], [1])
