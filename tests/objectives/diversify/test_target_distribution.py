"""Closed forms: constants by hand, and optima found by a general optimiser."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.target_distribution import (
    entropy_bits,
    forward_kl_target,
    forward_mara_reward,
    log_odds,
    reverse_kl_target,
    switch_beta,
    target,
)

ONE_OR_TWO = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.55, 0.25, 0.2]).double().log()
GOOD = Mara(threshold=0.9)
SECOND = Mara(threshold=0.9, algorithm=2)


def test_forward_by_hand():
    # beta = 1, reference 1/2, rewards 0 and 1: 1/(2 L) + 1/(2 (L - 1)) = 1, L = 1 + 1/sqrt(2)
    found = forward_kl_target(torch.tensor([0.0, 1.0]), torch.tensor([0.5, 0.5]).log(), 1.0)
    assert found.multiplier == pytest.approx(1 + 0.5**0.5, abs=1e-7)
    assert found.log_prob_K.exp().tolist() == pytest.approx([0.2928932, 0.7071068], abs=1e-7)


def test_reverse_by_hand():
    found = reverse_kl_target(torch.tensor([0.0, 1.0]), torch.tensor([0.75, 0.25]).log(), 0.5)
    assert found.exp().tolist() == pytest.approx([3 / (3 + math.e**2), math.e**2 / (3 + math.e**2)])


@pytest.mark.parametrize("beta", [0.001, 0.01, 0.03])
def test_one_or_two(beta):
    """Entropies of the right answers that the study's table has as its optima."""
    vanilla = target("reverse", *ONE_OR_TWO, beta)
    assert float(entropy_bits(vanilla)) == pytest.approx(0.896038, abs=1e-6)
    for mara in (GOOD, SECOND):
        assert float(entropy_bits(target("reverse", *ONE_OR_TWO, beta, mara))) == pytest.approx(1)
    first, second, _ = target("forward", *ONE_OR_TWO, beta, GOOD).exp().tolist()
    assert first / (first + second) == pytest.approx(0.445, abs=2e-3)
    first, second, _ = target("forward", *ONE_OR_TWO, beta, SECOND).exp().tolist()
    assert first == pytest.approx(second, abs=1e-12)


@pytest.mark.parametrize(
    ("ratio", "rare"), [(2, 0.507), (5, 0.563), (15, 0.665), (100, 0.79), (1e4, 0.89)]
)
def test_forward_overcorrects_under_algorithm_1(ratio, rare):
    """All reference mass on two right answers, beta small."""
    reference = torch.tensor([ratio / (1 + ratio), 1 / (1 + ratio)]).double().log()
    found = target("forward", torch.ones(2), reference, 1e-3, GOOD).exp()
    assert float(found[1]) == pytest.approx(rare, abs=6e-3)
    assert target("forward", torch.ones(2), reference, 1e-3, SECOND).exp().tolist() == [0.5, 0.5]


def test_exact_correction_of_the_forward_kl():
    reward, reference = torch.tensor([1.0, 1.0, 0.0]), torch.tensor([0.9, 0.06, 0.04]).log()
    augmented = forward_mara_reward(reward, reference, 0.01, threshold=0.9)
    found = forward_kl_target(augmented, reference, 0.01).log_prob_K.exp()
    assert found.tolist() == pytest.approx([0.4998, 0.4998, 0.0004], abs=5e-5)
    assert augmented[[0, 2]].tolist() == [1.0, 0.0]  # the anchor's own, and below
    torch.testing.assert_close(found, target("forward", reward, reference, 0.01, SECOND).exp())
    untouched = forward_mara_reward(reward, reference, 0.01, threshold=2.0)
    assert untouched.tolist() == [1.0, 1.0, 0.0]


tables = st.integers(2, 5).flatmap(
    lambda k: st.tuples(
        st.lists(st.floats(0, 1, width=16), min_size=k, max_size=k),
        st.lists(st.floats(0.0625, 1, width=16), min_size=k, max_size=k),
        st.sampled_from([0.1, 0.5, 2.0]),
    )
)


@settings(max_examples=25, deadline=None)
@given(tables)
def test_no_distribution_is_better(table):
    """Both closed forms against a general optimiser on the objective itself."""
    reward, weight, beta = table
    reward, q = np.array(reward), np.array(weight) / np.sum(weight)

    def objective(logits, divergence):
        p = np.exp(logits - logits.max())
        p = p / p.sum()
        kl = (p * np.log(p / q)).sum() if divergence == "reverse" else (q * np.log(q / p)).sum()
        return beta * kl - (p * reward).sum()

    reference = torch.from_numpy(q).log()
    for divergence in ("reverse", "forward"):
        ours = target(divergence, torch.from_numpy(reward), reference, beta).numpy()
        assert np.exp(ours).sum() == pytest.approx(1)
        best = minimize(objective, np.log(q), args=(divergence,), tol=1e-10)
        assert objective(ours, divergence) <= best.fun + 1e-9


@given(tables)
def test_forward_condition_holds(table):
    """beta q / p + R is one number for all answers: the stationarity of the forward objective."""
    reward, weight, beta = table
    reward, q = torch.tensor(reward).double(), torch.tensor(weight).double()
    q = q / q.sum()
    found = forward_kl_target(reward, q.log(), beta)
    level = beta * q / found.log_prob_K.exp() + reward
    torch.testing.assert_close(level, torch.full_like(level, found.multiplier), rtol=1e-7, atol=0)
    assert found.multiplier > float(reward.max())


def test_answers_off_the_support():
    reference = torch.tensor([0.75, 0.25, 0.0]).log()
    # Lambda is about 1.75 here: an unseen answer worth 1 gets nothing, one worth 3 leaks.
    found = forward_kl_target(torch.tensor([0.0, 1.0, 1.0]), reference, 1.0).log_prob_K
    assert found[2] == -math.inf
    assert float(found.exp().sum()) == pytest.approx(1)
    with pytest.raises(ValueError, match=r"answer 2 has reward 3 .* leak"):
        forward_kl_target(torch.tensor([0.0, 1.0, 3.0]), reference, 1.0)
    with pytest.raises(ValueError, match="no support"):
        forward_kl_target(torch.zeros(2), torch.tensor([-math.inf, -math.inf]), 1.0)
    reverse = reverse_kl_target(torch.tensor([0.0, 1.0, 3.0]), reference, 1.0)
    assert reverse[2] == -math.inf


def test_switch():
    # The paper's figure 2: .25 / (5.95 - 4.05)
    reward, reference = (0.75, 1.0), (-4.05, -5.95)
    star = switch_beta(reward, reference)
    assert star == pytest.approx(0.131579, abs=1e-6)
    assert log_odds(reward, reference, star) == pytest.approx(0)
    assert log_odds(reward, reference, 0.10) < 0 < log_odds(reward, reference, 0.15)
    assert switch_beta((1.0, 1.0), (-1.0, -2.0)) is None
    assert switch_beta((1.0, 0.5), (-1.0, -2.0)) is None
    # Proposition 4.2: a difference of .1 at beta = 1e-3 is odds of 2.6e43
    assert math.exp(log_odds((1.0, 0.9), (-3.0, -3.0), 1e-3)) == pytest.approx(2.688e43, rel=1e-3)


@pytest.mark.parametrize("beta", [0.0, -1.0])
@pytest.mark.parametrize("divergence", ["reverse", "forward"])
def test_beta_has_to_be_positive(divergence, beta):
    with pytest.raises(ValueError, match="beta"):
        target(divergence, *ONE_OR_TWO, beta)


def test_entropy():
    assert float(entropy_bits(torch.tensor([0.5, 0.5, 0.0]).log())) == 1.0
    assert float(entropy_bits(torch.tensor([1.0, 0.0]).log())) == 0.0
