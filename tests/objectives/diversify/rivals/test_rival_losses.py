"""The losses of other papers: constants by hand, expectations by enumeration."""

import itertools
import math

import pytest
import torch

from tests.objectives.diversify.rivals.enumerated_completions import (
    MASK,
    NUM,
    PARAMETERS,
    expected_gradient,
    finite_differences,
    log_prob,
    token_log_prob,
)
from triptych.objectives.diversify.policy_loss import Grpo, PolicySamples
from triptych.objectives.diversify.rivals.differential_smoothing import DifferentialSmoothing
from triptych.objectives.diversify.rivals.pass_at_k import PassAtK
from triptych.objectives.diversify.rivals.unlikeliness import Unlikeliness

NAN = math.nan
UNBIASED = {"divide_by_group_std": False, "token_weighting": "sum"}
RIGHT = [0.0, 1.0, 1.0, 0.0, 1.0]  # of the five completions
IS_RIGHT = torch.tensor(RIGHT, dtype=torch.float64)


def group(rewards, log_probs, *, scored=None, groups=None, lengths=None):
    """Completions with one token each, or with `lengths`, whose log-probability is given."""
    lengths = lengths or [1] * len(rewards)
    mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    per_token = torch.tensor(log_probs)[:, None] / torch.tensor(lengths)[:, None]
    return PolicySamples(
        per_token.expand(mask.shape).clone().requires_grad_(),
        mask,
        torch.tensor(rewards),
        torch.tensor(groups or [0] * len(rewards)),
        scored_reward_B=torch.tensor(rewards if scored is None else scored),
    )


def advantages(loss, given):
    return loss.advantage(given).detach()


# -- differential smoothing ------------------------------------------------------------------------


def test_differential_smoothing_by_hand():
    given = group([1.0, 0.0, 1.0, 0.0], [-2.0, -3.0, -5.0, -0.5])
    plain = 0.5 / (math.sqrt(1 / 3) + 1e-4)  # deviation of 1, 0, 1, 0 over three
    found = advantages(DifferentialSmoothing(gamma_right=0.1, gamma_wrong=0.2), given)
    expected = [plain + 0.2, -plain - 0.6, plain + 0.5, -plain - 0.1]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_differential_smoothing_follows_the_entropy_of_right_answers_only():
    gammas = {"gamma_right": 0.3, "gamma_wrong": 0.0}
    smoothed = expected_gradient(DifferentialSmoothing(**UNBIASED, **gammas), RIGHT, 2)
    found = smoothed - expected_gradient(Grpo(**UNBIASED), RIGHT, 2)

    def objective(parameters, which):
        p = log_prob(parameters).exp()
        return (which * (p - p * p.log())).sum()

    expected = finite_differences(lambda x: 0.3 * objective(x, IS_RIGHT))
    torch.testing.assert_close(found, -expected, rtol=1e-7, atol=1e-9)
    gammas = {"gamma_right": 0.0, "gamma_wrong": 0.2}
    sharpened = expected_gradient(DifferentialSmoothing(**UNBIASED, **gammas), RIGHT, 2)
    found = sharpened - expected_gradient(Grpo(**UNBIASED), RIGHT, 2)
    expected = finite_differences(lambda x: -0.2 * objective(x, 1 - IS_RIGHT))
    torch.testing.assert_close(found, -expected, rtol=1e-7, atol=1e-9)


def test_differential_smoothing_takes_the_policy_that_sampled():
    given = group([1.0, 0.0], [-2.0, -3.0])
    given.old_log_prob_BT = torch.tensor([[-4.0], [-1.0]])
    loss = DifferentialSmoothing(gamma_right=0.5, gamma_wrong=0.25, divide_by_group_std=False)
    assert advantages(loss, given).tolist() == [0.5 + 2.0, -0.5 - 0.25]


# -- pass@k ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rewards", "k", "expected"),
    [
        # 3 of 4 wrong: mean 1 - 3/6, deviation 1/2; a wrong one has a right partner in 1 of 3.
        ([1.0, 0.0, 0.0, 0.0], 2, [1.0, -1 / 3, -1 / 3, -1 / 3]),
        # 2 of 4 wrong: mean 1 - 1/6, deviation sqrt(5)/6; in 2 of 3 pairs a wrong one has a right.
        ([1.0, 1.0, 0.0, 0.0], 2, [1 / 5**0.5, 1 / 5**0.5, -1 / 5**0.5, -1 / 5**0.5]),
        # 1 of 4 wrong: all pairs hold a right one.
        ([1.0, 1.0, 1.0, 0.0], 2, [0.0] * 4),
        ([0.0] * 4, 2, [0.0] * 4),
        ([1.0] * 4, 3, [0.0] * 4),
        # k = 1: (1 - p) / sqrt(p (1 - p)), and its counterpart
        ([1.0, 0.0, 0.0, 0.0], 1, [3**0.5, -(3**-0.5), -(3**-0.5), -(3**-0.5)]),
        # k = 4: one subset
        ([1.0, 0.0, 0.0, 0.0], 4, [0.0] * 4),
        # Fewer than k scored
        ([1.0, 0.0, NAN, NAN], 3, [0.0, 0.0, NAN, NAN]),
    ],
)
def test_pass_at_k_by_hand(rewards, k, expected):
    given = group(rewards, [-1.0] * 4)
    torch.testing.assert_close(
        advantages(PassAtK(k=k), given),
        torch.tensor(expected),
        rtol=1e-4,
        atol=1e-5,
        equal_nan=True,
    )


def test_pass_at_k_equals_the_mean_over_subsets():
    """Groups of different sizes and numbers of right ones, against all subsets one by one."""
    rewards = [1.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.0]
    groups = [0] * 5 + [7] * 4
    given = group(rewards, [-1.0] * 9, groups=groups)
    found = advantages(PassAtK(k=3, divide_by_group_std=False), given).tolist()
    for number, begin, end in ((0, 0, 5), (7, 5, 9)):
        subsets = list(itertools.combinations(range(begin, end), 3))
        value = {s: max(rewards[i] for i in s) for s in subsets}
        mean = sum(value.values()) / len(subsets)
        for row in range(begin, end):
            own = [value[s] for s in subsets if row in s]
            assert found[row] == pytest.approx(sum(own) / len(own) - mean, abs=1e-6), number


@pytest.mark.parametrize(("k", "size"), [(1, 3), (2, 3), (3, 4), (2, 2)])
def test_pass_at_k_has_the_direction_of_its_gradient(k, size):
    found = expected_gradient(PassAtK(k=k, **UNBIASED), RIGHT, size)

    def pass_at_k(parameters):
        return 1 - (1 - (IS_RIGHT * log_prob(parameters).exp()).sum()) ** k

    expected = (1 / k - 1 / size) * finite_differences(pass_at_k)
    torch.testing.assert_close(found, -expected, rtol=1e-7, atol=1e-9)


def test_pass_at_k_keeps_what_the_reward_holds_beyond_right_and_wrong():
    """The KL in the reward is centred in the group, at any number of right ones."""
    for scored in ([1.0, 0.0, 0.0, 0.0], [0.0] * 4, [1.0] * 4):
        rewards = [r + extra for r, extra in zip(scored, (0.2, -0.2, 0.4, 0.0), strict=True)]
        plain, more = (
            advantages(PassAtK(k=2), group(r, [-1.0] * 4, scored=scored)) for r in (scored, rewards)
        )
        std = 0.5 if sum(scored) == 1 else 1.0
        rest = torch.tensor([0.1, -0.3, 0.3, -0.1]) / std
        torch.testing.assert_close(more - plain, rest, rtol=1e-5, atol=1e-6)


# -- unlikeliness ----------------------------------------------------------------------------------


def test_unlikeliness_by_hand():
    """The likeliest right one of four loses 3/4 of beta_rank, the rarest nothing; wrong ones 0."""
    given = group([1.0, 1.0, 0.0, 1.0], [-1.0, -4.0, -2.0, -3.0])
    found = advantages(Unlikeliness(beta_rank=0.4, divide_by_group_std=False), given)
    rewards = torch.tensor([1 - 0.4 * 3 / 4, 1.0, 0.0, 1 - 0.4 / 4])
    torch.testing.assert_close(found, rewards - rewards.mean())


def test_unlikeliness_ranks_by_log_probability_per_token():
    given = group([1.0, 1.0], [-4.0, -3.0], lengths=[4, 1])  # -1 and -3 per token
    per_token = advantages(Unlikeliness(divide_by_group_std=False), given)
    torch.testing.assert_close(per_token, torch.tensor([-0.0625, 0.0625]))
    whole = Unlikeliness(divide_by_group_std=False, length_normalised=False)
    torch.testing.assert_close(advantages(whole, given), torch.tensor([0.0625, -0.0625]))


def test_unlikeliness_leaves_failed_rows_and_other_groups_out_of_the_ranks():
    given = group([1.0, NAN, 1.0, 1.0], [-2.0, -1.0, -3.0, -9.0], groups=[0, 0, 0, 5])
    found = advantages(Unlikeliness(beta_rank=1.0, divide_by_group_std=False), given)
    expected = torch.tensor([-0.25, NAN, 0.25, 0.0])
    torch.testing.assert_close(found, expected, equal_nan=True)


def test_unlikeliness_by_enumeration():
    """The exact expectation over all groups of three, from plain loops."""
    found = expected_gradient(
        Unlikeliness(beta_rank=0.5, length_normalised=False, **UNBIASED), RIGHT, 3
    )
    parameters = PARAMETERS.clone().requires_grad_()
    scores = log_prob(parameters)
    values = scores.tolist()
    factor = [0.0] * NUM
    for drawn in itertools.product(range(NUM), repeat=3):
        chance = math.exp(sum(values[i] for i in drawn))
        rewards = []
        for i in drawn:
            lower = sum(values[j] < values[i] for j in drawn)
            equal = sum(values[j] == values[i] for j in drawn)
            rewards.append(RIGHT[i] * (1 - 0.5 * (lower + (equal - 1) / 2) / 3))
        mean = sum(rewards) / 3
        for i, reward in zip(drawn, rewards, strict=True):
            factor[i] += chance * (reward - mean) / 3
    total = sum(f * score for f, score in zip(factor, scores, strict=True))
    expected = torch.autograd.grad(total, parameters)[0]
    torch.testing.assert_close(found, -expected, rtol=1e-9, atol=1e-12)
    # It favours the rarer right answers, where GRPO follows their present odds.
    plain = expected_gradient(Grpo(**UNBIASED), RIGHT, 3)
    assert not torch.allclose(found, plain, rtol=0.05)


# -- all -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss", "settings"),
    [
        (DifferentialSmoothing, {"gamma_right": 0.0, "gamma_wrong": 0.0}),
        (Unlikeliness, {"beta_rank": 0.0}),
    ],
)
def test_without_its_term_each_is_grpo(loss, settings):
    given = group([1.0, 0.0, 0.25, NAN], [-1.0, -2.0, -3.0, -4.0])
    given.scored_reward_B = given.reward_B
    assert torch.equal(loss(**settings)(given).total.detach(), Grpo()(given).total.detach())


@pytest.mark.parametrize("loss", [DifferentialSmoothing(), PassAtK(), Unlikeliness()])
def test_each_needs_the_scored_rewards(loss):
    samples = PolicySamples(
        token_log_prob(PARAMETERS), MASK, IS_RIGHT, torch.zeros(NUM, dtype=torch.int64)
    )
    with pytest.raises(ValueError, match=f"{type(loss).__name__} needs scored_reward_B"):
        loss(samples)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: DifferentialSmoothing(gamma_right=-0.1), "gamma_right"),
        (lambda: DifferentialSmoothing(gamma_wrong=NAN), "gamma_wrong"),
        (lambda: PassAtK(k=0), "k is 0"),
        (lambda: Unlikeliness(beta_rank=1.5), "beta_rank"),
        (lambda: Unlikeliness(clip_low=0.0), "clip_low"),
    ],
)
def test_mistakes_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
