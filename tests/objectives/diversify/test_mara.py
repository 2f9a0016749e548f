"""MARA's augmentation: constants worked out by hand, and what has to hold for any batch."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from triptych.objectives.diversify.mara import Mara

NAN = math.nan


def augment(mara, reward, reference, group=None, beta=0.1, **more):
    group = [0] * len(reward) if group is None else group
    return mara.augment(
        torch.tensor(reward), torch.tensor(reference), torch.tensor(group), beta, **more
    )


def test_algorithm_1_by_hand():
    # Above .9: rows 0, 1, 3. The likeliest is row 1 (-2); its reward is 1.5.
    found = augment(Mara(threshold=0.9), [1.0, 1.5, 0.5, 2.0], [-4.0, -2.0, -1.0, -7.0])
    # 1.5 + .1 (-2 + 4), itself, untouched, 1.5 + .1 (-2 + 7)
    torch.testing.assert_close(found.reward_B, torch.tensor([1.7, 1.5, 0.5, 2.0]))
    assert found.anchor_B.tolist() == [1, 1, 1, 1]
    assert found.above_B.tolist() == [True, True, False, True]
    assert found.shift_B.tolist() == [2.0, 0.0, 0.0, 5.0]
    assert found.anchor_reward_B.tolist() == [1.5] * 4
    assert found.is_anchor.tolist() == [False, True, False, False]
    second_process = found.rows(1, 2)
    assert second_process.is_anchor.tolist() == [True, False]
    assert second_process.rows(1, 1).first_row == 2
    assert second_process.reward_B.tolist() == found.reward_B[1:3].tolist()


def test_algorithm_2_replaces_reward_and_reference():
    found = augment(
        Mara(threshold=0.9, algorithm=2), [1.0, 1.5, 0.5, 2.0], [-4.0, -2.0, -1.0, -7.0]
    )
    assert found.reward_B.tolist() == [1.5, 1.5, 0.5, 1.5]
    assert found.reference_log_prob_B.tolist() == [-2.0, -2.0, -1.0, -2.0]


def test_anchor_is_the_groups():
    found = augment(
        Mara(threshold=0.9),
        [1.0, 1.0, 1.0, 1.0, 0.0],
        [-1.0, -3.0, -9.0, -8.0, -1.0],
        [7, 7, -2, -2, 4],
    )
    assert found.anchor_B.tolist() == [0, 0, 3, 3, -1]
    torch.testing.assert_close(found.reward_B, torch.tensor([1.0, 1.2, 1.1, 1.0, 0.0]))
    whole = augment(
        Mara(threshold=0.9, scope="batch"),
        [1.0, 1.0, 1.0, 1.0, 0.0],
        [-1.0, -3.0, -9.0, -8.0, -1.0],
        [7, 7, -2, -2, 4],
    )
    assert whole.anchor_B.tolist() == [0] * 5
    torch.testing.assert_close(whole.reward_B, torch.tensor([1.0, 1.2, 1.8, 1.7, 0.0]))


def test_ties_go_to_the_lowest_row_and_duplicates_change_nothing():
    found = augment(Mara(threshold=0.5), [0.75, 1.0, 1.0], [-2.0, -2.0, -2.0])
    assert found.anchor_B.tolist() == [0, 0, 0]
    assert found.reward_B.tolist() == [0.75, 0.75, 0.75]  # R_z, not the best R
    same = augment(Mara(threshold=0.5), [1.0, 1.0, 0.0], [-2.0, -2.0, -1.0])
    assert same.reward_B.tolist() == [1.0, 1.0, 0.0]


def test_failed_rows_are_neither_above_nor_anchors():
    found = augment(Mara(threshold=0.5), [NAN, 1.0, 1.0, 1.0], [-0.1, -2.0, -3.0, -math.inf])
    assert found.anchor_B.tolist() == [1] * 4
    assert found.above_B.tolist() == [False, True, True, False]
    assert math.isnan(found.reward_B[0])
    torch.testing.assert_close(found.reward_B[1:], torch.tensor([1.0, 1.1, 1.0]))
    percentile = augment(Mara(percentile=50), [NAN, 1.0, 2.0, 3.0], [-1.0, -1.0, -2.0, -3.0])
    assert percentile.threshold == 2.0


def test_a_batch_without_rewards():
    found = augment(Mara(percentile=80), [NAN, NAN], [-1.0, -2.0])
    assert found.anchor_B.tolist() == [-1, -1]
    assert found.reward_B.isnan().all()
    assert found.anchor_reward_B.isnan().all()


def test_beta_zero_leaves_only_the_anchors_reward():
    found = augment(Mara(threshold=0.5), [1.0, 0.8, 0.0], [-5.0, -1.0, -1.0], beta=0.0)
    torch.testing.assert_close(found.reward_B, torch.tensor([0.8, 0.8, 0.0]))


def test_percentile_is_numpys():
    rewards = [0.1, 0.4, 0.2, 0.9, 0.6]
    # 80% of the way from rank 0 to 4 is rank 3.2: .6 + .2 (.9 - .6)
    found = augment(Mara(percentile=80), rewards, [-1.0] * 5)
    assert found.threshold == pytest.approx(0.66)
    assert found.above_B.tolist() == [False, False, False, True, False]


def test_schedule():
    mara = Mara(threshold=0.2, end_value=0.8, schedule_steps=10)
    thresholds = [augment(mara, [1.0], [-1.0], step=s).threshold for s in (0, 5, 10, 99)]
    assert thresholds == pytest.approx([0.2, 0.5, 0.8, 0.8])


def test_replayed_rows():
    reward, reference = [1.0, 1.0, 0.0], [-1.0, -4.0, -2.0]
    replayed = torch.tensor([True, False, False])
    fresh = augment(Mara(threshold=0.9, scope="batch"), reward, reference, replayed_B=replayed)
    assert fresh.anchor_B.tolist() == [1, 1, 1]
    torch.testing.assert_close(fresh.reward_B, torch.tensor([0.7, 1.0, 0.0]))  # 1 + .1 (-4 + 1)
    both = augment(
        Mara(threshold=0.9, scope="batch_and_replay"), reward, reference, replayed_B=replayed
    )
    assert both.anchor_B.tolist() == [0, 0, 0]
    half = augment(
        Mara(percentile=100, scope="batch"), [5.0, 1.0, 0.0], reference, replayed_B=replayed
    )
    assert half.threshold == 1.0  # replayed rows do not count


def test_clip_and_length():
    clipped = augment(Mara(threshold=0.9, clip=2.0), [1.0, 1.0], [-1.0, -9.0])
    torch.testing.assert_close(clipped.reward_B, torch.tensor([1.0, 1.2]))
    second = augment(Mara(threshold=0.9, clip=2.0, algorithm=2), [1.0, 1.0], [-1.0, -9.0])
    assert second.reference_log_prob_B.tolist() == [-1.0, -7.0]
    mara = Mara(threshold=0.9, length_normalised=True)
    per_token = augment(mara, [1.0, 1.0], [-2.0, -4.0], num_tokens_B=torch.tensor([1, 4]))
    # -2 and -1 a token: the longer one is the anchor.
    assert per_token.anchor_B.tolist() == [1, 1]
    torch.testing.assert_close(per_token.reward_B, torch.tensor([1.1, 1.0]))
    assert not mara.exact
    assert Mara(threshold=0.9).exact


batches = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.3, 0.7, 1.0, NAN]),
        st.floats(-30, 0, width=32),
        st.integers(0, 2),
    ),
    min_size=1,
    max_size=12,
)


@given(batches, st.sampled_from([0.0, 0.01, 1.0]), st.sampled_from(["group", "batch"]))
def test_against_the_algorithm_written_out(rows, beta, scope):
    columns = zip(zip(*rows, strict=True), (torch.float64, torch.float64, torch.int64), strict=True)
    reward, reference, group = (torch.tensor(x, dtype=dtype) for x, dtype in columns)
    found = Mara(threshold=0.7, scope=scope).augment(reward, reference, group, beta)
    second = Mara(threshold=0.7, scope=scope, algorithm=2).augment(reward, reference, group, beta)
    for i, (own, _, g) in enumerate(rows):
        among = [
            j for j, row in enumerate(rows) if row[0] >= 0.7 and (scope == "batch" or row[2] == g)
        ]
        z = max(among, key=lambda j: (rows[j][1], -j), default=-1)
        assert int(found.anchor_B[i]) == z
        if own >= 0.7:
            expected = rows[z][0] + beta * (rows[z][1] - rows[i][1])
            assert float(found.reward_B[i]) == pytest.approx(expected, abs=1e-12)
            # One target for all above: what the theorem is about, under either algorithm.
            for one in (found, second):
                level = beta * one.reference_log_prob_B[i] + one.reward_B[i]
                assert float(level) == pytest.approx(beta * rows[z][1] + rows[z][0], abs=1e-9)
        else:
            same = found.reward_B[i].item()
            assert same == own or (math.isnan(own) and math.isnan(same))
            assert second.reference_log_prob_B[i] == reference[i]


@given(batches)
def test_nothing_above_leaves_rewards_bit_for_bit(rows):
    reward, reference, group = (torch.tensor(x) for x in zip(*rows, strict=True))
    found = Mara(threshold=1.5).augment(reward, reference, group, 0.1)
    assert torch.equal(found.reward_B.nan_to_num(9.0), reward.nan_to_num(9.0))
    assert (found.anchor_B == -1).all()
    assert not found.above_B.any()


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({}, "threshold"),
        ({"threshold": 0.5, "percentile": 80}, "percentile"),
        ({"percentile": 101}, "percentile"),
        ({"percentile": 50, "end_value": 120, "schedule_steps": 3}, "end_value"),
        ({"threshold": 0.5, "end_value": 0.7}, "schedule_steps"),
        ({"threshold": 0.5, "schedule_steps": 7}, "end_value"),
        ({"threshold": 0.5, "clip": 0.0}, "clip"),
        ({"threshold": 0.5, "length_normalised": True, "algorithm": 2}, "length_normalised"),
    ],
)
def test_settings_that_cannot_work(settings, named):
    with pytest.raises(ValueError, match=named):
        Mara(**settings)


def test_calls_that_cannot_work():
    with pytest.raises(ValueError, match="beta"):
        augment(Mara(threshold=0.5), [1.0], [-1.0], beta=-0.1)
    with pytest.raises(ValueError, match="num_tokens_B"):
        augment(Mara(threshold=0.5, length_normalised=True), [1.0], [-1.0])


@pytest.mark.parametrize("threshold", [0.1, 0.3, 0.6, 0.7, 0.85, 0.9, 0.95, 0.99])
def test_a_float32_reward_of_exactly_the_threshold_is_above(threshold):
    reward = torch.tensor([threshold, 0.0], dtype=torch.float32)
    group = torch.zeros(2, dtype=torch.int64)
    made = Mara(threshold=threshold).augment(reward, torch.tensor([-1.0, -2.0]), group, 0.1)
    assert made.above_B.tolist() == [True, False]
