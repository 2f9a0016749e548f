"""Diversity filters: the penalties by hand, and what counts as the same kind of molecule."""

import json
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
        ("step", 2, 2, 1.0),
        ("step", 3, 2, 0.0),
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


ALKYL = ["Cc1ccccc1", "CCc1ccccc1", "CCCc1ccccc1", "CCCCc1ccccc1", "CCCCCc1ccccc1"]
MIXED = {
    "Cc1ccccc1": 0.9,
    "Cc1ccncc1": 0.8,
    "CCc1ccccc1": 0.3,
    "Cc1ccc2ccccc2c1": 0.7,
    "CCO": 0.6,
    "CC1CCCCC1": 0.5,
    "CCCc1ccccc1": 0.8,
    "CCN": 0.2,
    "Cc1ccc(-c2ccccc2)cc1": 0.7,
    "OC1CCCCC1": 0.4,
}
ORDER = [*list(MIXED)[:6], "Cc1ccccc1", "CCCc1ccccc1", "CCO", *list(MIXED)[7:]]


# Rewards after the scaffold filters and PenalizeSameSmiles of REINVENT 4 (commit 4309467), minimum
# score .4 and minimum similarity .4, made with its own classes.
@pytest.mark.parametrize(
    ("bucket", "size", "expected"),
    [
        ("murcko_scaffold", 1, [0.9, 0.8, 0.3, 0.7, 0.6, 0.5, 0, 0, 0, 0.2, 0.7, 0]),
        ("murcko_scaffold", 2, [0.9, 0.8, 0.3, 0.7, 0.6, 0.5, 0, 0.8, 0, 0.2, 0.7, 0.4]),
        ("topological_scaffold", 1, [0.9, 0, 0.3, 0.7, 0.6, 0, 0, 0, 0, 0.2, 0.7, 0]),
        ("topological_scaffold", 2, [0.9, 0.8, 0.3, 0.7, 0.6, 0, 0, 0, 0, 0.2, 0.7, 0]),
        ("similar_scaffold", 1, [0.9, 0, 0.3, 0, 0.6, 0.5, 0, 0, 0, 0.2, 0.7, 0]),
        ("similar_scaffold", 2, [0.9, 0.8, 0.3, 0, 0.6, 0.5, 0, 0, 0, 0.2, 0.7, 0.4]),
        ("molecule", 1, [0.9, 0.8, 0.3, 0.7, 0.6, 0.5, 0.45, 0.8, 0.3, 0.2, 0.7, 0.4]),
    ],
)
def test_defaults_are_the_rules_of_reinvent_4(bucket, size, expected):
    rewards = torch.tensor([MIXED[text] for text in ORDER])
    whole = DiversityFilter(bucket, bucket_size=size)
    torch.testing.assert_close(whole.penalised(ORDER, rewards), torch.tensor(expected).float())
    # The same in two batches, with a checkpoint between them.
    first, second = (DiversityFilter(bucket, bucket_size=size) for _ in range(2))
    kept = [first.penalised(ORDER[:5], rewards[:5])]
    second.load_state_dict(json.loads(json.dumps(first.state_dict())))
    kept.append(second.penalised(ORDER[5:], rewards[5:]))
    torch.testing.assert_close(torch.cat(kept), torch.tensor(expected).float())
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "smiles", "expected"),
    [  # The cases in which version 0.2 differed from REINVENT 4.
        ({"bucket_size": 3}, ALKYL, [1, 1, 1, 0, 0]),
        ({"bucket_size": 3}, ALKYL[:1] * 4 + ALKYL[1:3], [1, 0, 0, 0, 1, 1]),
        ({"bucket_size": 1}, ALKYL[:2], [1, 0]),
        ({"bucket": "molecule", "bucket_size": 1}, [*ALKYL[:2], "c1(C)ccccc1"], [1, 1, 0.5]),
        # The rules of version 0.2: every sample counts, and m - 1 keep their reward.
        ({"bucket_size": 3, "repeats": "count", "full": "at_size"}, ALKYL[:1] * 4, [1, 1, 0, 0]),
        ({"bucket": "molecule", "bucket_size": 1, "repeats": "count"}, ALKYL[:1] * 2, [1, 0]),
    ],
)
def test_known_molecules_and_full_buckets(settings, smiles, expected):
    kept = DiversityFilter(**settings).penalised(smiles, torch.ones(len(smiles)))
    assert kept.tolist() == expected


def test_a_scaffold_is_worth_less_once_its_bucket_is_full():
    buckets = DiversityFilter(bucket_size=2, min_score=0.5)
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
    assert buckets.factor("C1CCCCC1", 0.9) == 1.0  # known, and not penalised as a repeat
    assert buckets.factor("C1CCNCC1", 0.9) == 1.0
    assert buckets.counts["c1ccccc1"] == 3


def test_a_remembered_molecule_founds_no_bucket():
    buckets = DiversityFilter("similar_scaffold", bucket_size=1)
    buckets.penalised(["Cc1ccccc1"], torch.ones(1))
    state = buckets.state_dict()
    assert buckets.factor("OC1CCCCC1", 0.9) == 1.0
    assert buckets.state_dict() == state


def test_a_checkpoint_of_version_0_2_is_read():
    buckets = DiversityFilter("similar_scaffold", bucket_size=1)
    buckets.load_state_dict({"counts": {"c1ccccc1": 2}})
    assert buckets.penalised(["Cc1ccncc1"], torch.ones(1)).tolist() == [0.0]


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="leaves no molecule its reward"):
        DiversityFilter(bucket_size=1, full="at_size")
    for wrong in ({"bucket_size": 0}, {"min_similarity": 1.5}, {"penalty_multiplier": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            DiversityFilter(**wrong)
