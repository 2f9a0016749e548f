"""MCC and block R^2 against scipy, least squares of torch, and constants by hand."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import linear_sum_assignment
from scipy.stats import spearmanr
from torch import Tensor

from triptych.metrics.commune.disentanglement import BlockR2, MeanCorrelation


def samples(num_samples: int = 200, num_extra: int = 1) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(num_samples, 3, generator=generator, dtype=torch.float64)
    mix = torch.randn(3, 3 + num_extra, generator=generator, dtype=torch.float64)
    noise = torch.randn(num_samples, 3 + num_extra, generator=generator, dtype=torch.float64)
    return true + 5, (true @ mix).exp() + noise


def reference_mcc(true: Tensor, recovered: Tensor, is_spearman: bool) -> float:
    if is_spearman:
        table = spearmanr(true.numpy(), recovered.numpy()).statistic
    else:
        table = torch.corrcoef(torch.cat([true, recovered], 1).T).numpy()
    table = abs(table[: true.shape[1], true.shape[1] :])
    return float(table[linear_sum_assignment(table, maximize=True)].mean())


@pytest.mark.parametrize("is_spearman", [False, True])
def test_mcc_equals_scipys(is_spearman):
    true, recovered = samples()
    recovered[:50] = recovered[:50].round()  # ties
    metric = MeanCorrelation(3, 4, rank_among=(true, recovered) if is_spearman else None)
    for part in range(0, 200, 70):
        metric.update(true[part : part + 70], recovered[part : part + 70])
    assert metric.compute().item() == pytest.approx(reference_mcc(true, recovered, is_spearman))


def test_mcc_by_hand():
    # True latents (1, 2, 3) and (1, 0, 1); recovered (3, 1, 2), correlations -1/2 and
    # sqrt(3)/2 of (2 - mean) ... with the first -0.5 and with the second .866; and (0, 0, 0).
    metric = MeanCorrelation(2, 2)
    true = torch.tensor([[1.0, 1.0], [2.0, 0.0], [3.0, 1.0]])
    recovered = torch.tensor([[3.0, 0.0], [1.0, 0.0], [2.0, 0.0]])
    metric.update(true, recovered)
    # The second true latent takes the first recovered one, the other has one that never moves.
    assert metric.compute().item() == pytest.approx(3**0.5 / 2 / 2)


@settings(max_examples=20, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    flips=st.lists(st.sampled_from([-3.0, 0.5, 7.0]), min_size=3, max_size=3),
)
def test_order_sign_scale_and_shift_do_not_matter(seed, flips):
    true, _ = samples(40)
    order = torch.randperm(3, generator=torch.Generator().manual_seed(seed))
    metric = MeanCorrelation(3, 3)
    metric.update(true, true[:, order] * torch.tensor(flips) + 2)
    assert metric.compute().item() == pytest.approx(1.0)
    blocks = BlockR2([0, 1, 1])
    held_out = torch.arange(40) >= 20
    blocks.update(true, true[:, order] * torch.tensor(flips) + 2, held_out)
    torch.testing.assert_close(blocks.compute().diagonal(), torch.ones(2, dtype=torch.float64))


def test_spearman_sees_through_what_is_monotone():
    true, _ = samples(100)
    bent = true**3
    pearson, spearman = MeanCorrelation(3, 3), MeanCorrelation(3, 3, rank_among=(true, bent))
    for metric in (pearson, spearman):
        metric.update(true, bent)
    assert spearman.compute().item() == pytest.approx(1.0)
    assert pearson.compute().item() < 0.999


def reference_r2(true: Tensor, recovered: Tensor, held_out: Tensor, ys: list, xs: list) -> float:
    design = torch.cat([recovered[:, xs], torch.ones(len(true), 1, dtype=torch.float64)], 1)
    weights = torch.linalg.lstsq(design[~held_out], true[~held_out][:, ys]).solution
    target = true[held_out][:, ys]
    error = (target - design[held_out] @ weights).square().sum(0)
    return (1 - error / (target - target.mean(0)).square().sum(0)).mean().item()


def test_block_r2_equals_least_squares():
    true, recovered = samples()
    held_out = torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.4
    metric = BlockR2([0, 1, 1], [1, 0, 1, 1])
    for part in range(0, 200, 60):
        place = slice(part, part + 60)
        metric.update(true[place], recovered[place], held_out[place])
    found = metric.compute()
    true_groups, recovered_groups = [[0], [1, 2]], [[1], [0, 2, 3]]
    for row, ys in enumerate(true_groups):
        for column, xs in enumerate(recovered_groups):
            expected = reference_r2(true, recovered, held_out, ys, xs)
            assert found[row, column].item() == pytest.approx(expected, abs=1e-9)


def test_groups_are_aligned_by_matching():
    true, _ = samples()
    held_out = torch.arange(200) >= 100
    recovered = true[:, [2, 0, 1]]
    aligned, given_groups = BlockR2([0, 1, 2]), BlockR2([0, 1, 2], [2, 0, 1])
    for metric in (aligned, given_groups):
        metric.update(true, recovered, held_out)
    torch.testing.assert_close(aligned.compute(), given_groups.compute())
    off = aligned.compute() - torch.eye(3, dtype=torch.float64)
    assert off.abs().max() < 0.1  # independent latents explain nothing of each other


def test_a_group_without_recovered_latents_explains_nothing():
    true, _ = samples()
    metric = BlockR2([0, 1, 1], [1, 1])
    metric.update(true, true[:, 1:], torch.arange(200) >= 100)
    assert metric.compute()[:, 0].tolist() == [0.0, 0.0]
    assert metric.compute()[1, 1].item() == pytest.approx(1.0)


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="every true latent needs"):
        MeanCorrelation(3, 2)
    with pytest.raises(ValueError, match="without gaps"):
        BlockR2([0, 2])
    with pytest.raises(ValueError, match=r"recovered_groups names \[5\]"):
        BlockR2([0, 1], [0, 5])
    with pytest.raises(ValueError, match=r"recovered latents have shape \(2, 3\)"):
        MeanCorrelation(2, 2).update(torch.zeros(2, 2), torch.zeros(2, 3))
    with pytest.raises(ValueError, match="2 samples of true and 1"):
        MeanCorrelation(1, 1).update(torch.zeros(2, 1), torch.zeros(1, 1))
    with pytest.raises(ValueError, match="bool for each sample"):
        BlockR2([0]).update(torch.zeros(2, 1), torch.zeros(2, 1), torch.zeros(2))
