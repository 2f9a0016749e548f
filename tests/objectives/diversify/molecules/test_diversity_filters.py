"""Diversity filters: the penalties by hand, and what counts as the same kind of molecule."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.objectives.diversify.molecules.diversity_filters import DiversityFilter, penalty

KINDS = ("step", "linear", "sigmoid", "erf", "tanh")


@pytest.mark.parametrize(
    ("kind", "count", "size", "expected"),
    [
        ("step", 1, 2, 1.0),
        ("step", 2, 2, 0.0),
        ("linear", 1, 4, 0.75),
        ("linear", 9, 4, 0.0),
        ("sigmoid", 5, 10, 0.5),
        ("sigmoid", 10, 10, 0.0012710),  # 1 - 1 / (1 + e^(-1/0.15)), e^-6.6667 = 0.0012726
        ("erf", 1, 25, 1.0),
        ("erf", 25, 25, 0.0920550),  # 1 + erf(0.0708982) - erf(1.7724539) = 1.0798660 - 0.9878110
        ("tanh", 1, 10, 1.0),
        ("tanh", 11, 10, 0.0049452),  # 1 - tanh(3)
    ],
)
def test_penalties_by_hand(kind, count, size, expected):
    assert penalty(kind, count, size) == pytest.approx(expected, abs=2e-5)


@given(st.sampled_from(KINDS), st.integers(1, 400), st.integers(1, 60))
def test_penalties_fall_and_stay_in_the_unit_interval(kind, count, size):
    now, later = penalty(kind, count, size), penalty(kind, count + 1, size)
    assert -1e-12 <= later <= now + 1e-12 <= 1 + 2e-12
    assert math.isfinite(now)


def test_a_scaffold_is_worth_less_once_its_bucket_is_full():
    buckets = DiversityFilter(bucket_size=3, min_score=0.5)
    # Four benzenes, one of them below the minimum, no molecule, a ring of its own, nan.
    smiles = ["Cc1ccccc1", "CCc1ccccc1", "Oc1ccccc1", "Nc1ccccc1", "C1CC", "C1CCCCC1", "C"]
    rewards = torch.tensor([0.9, 0.8, 0.4, 0.7, 0.9, 0.6, torch.nan])
    kept = buckets.penalised(smiles, rewards)
    expected = torch.tensor([0.9, 0.8, 0.4, 0.0, 0.9, 0.6, torch.nan])
    torch.testing.assert_close(kept, expected, equal_nan=True)
    assert buckets.counts == {"c1ccccc1": 3, "C1CCCCC1": 1}
    assert buckets.num_full == 1
    # What is remembered is looked at, not counted.
    assert buckets.factor("Clc1ccccc1", 0.9) == 0.0
    assert buckets.factor("Clc1ccccc1", 0.3) == 1.0
    assert buckets.factor("C1CCNCC1", 0.9) == 1.0
    assert buckets.counts["c1ccccc1"] == 3


@pytest.mark.parametrize(
    ("bucket", "same", "other"),
    [
        ("topological_scaffold", "Cc1ccncc1", "CC1CCCC1"),
        ("molecule", "c1(C)ccccc1", "CCc1ccccc1"),
        ("similar_scaffold", "CCc1ccccc1", "C1CC2CC1CN2"),
    ],
)
def test_kinds_of_buckets(bucket, same, other):
    buckets = DiversityFilter(bucket, bucket_size=2, min_similarity=0.6)
    kept = buckets.penalised(["Cc1ccccc1", same, other], torch.full((3,), 0.9))
    torch.testing.assert_close(kept, torch.tensor([0.9, 0.0, 0.9]))
    again = DiversityFilter(bucket, bucket_size=2, min_similarity=0.6)
    again.load_state_dict(buckets.state_dict())
    assert again.counts == buckets.counts
    assert again.factor(same, 0.9) == 0.0


def test_settings_out_of_range():
    for wrong in ({"bucket_size": 0}, {"min_similarity": 1.5}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DiversityFilter(**wrong)
