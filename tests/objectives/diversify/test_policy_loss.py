"""Policy losses: gradients by hand and by enumeration, failed rows, clipping, several ranks."""

import itertools
import math

import pytest
import torch

from triptych.objectives.diversify.importance import importance_weight
from triptych.objectives.diversify.policy_loss import (
    Dap,
    Grpo,
    PolicySamples,
    Reinforce,
    Rloo,
    group_advantage,
    leave_one_out_advantage,
)

NAN = math.nan
# Three completions of 2, 1 and 2 tokens, and one alone in its group
MASK = torch.tensor([[True, True], [True, False], [True, True], [True, True]])
GROUP = torch.tensor([0, 0, 0, 5])


def samples(reward, **more):
    log_prob = torch.tensor(
        [[-1.0, -2.0], [-0.5, -9.0], [-1.5, -0.5], [-1.0, -1.0]], requires_grad=True
    )
    return PolicySamples(log_prob, MASK, torch.tensor(reward), GROUP, **more)


def gradient(loss, given, **more):
    return torch.autograd.grad(loss(given).mean(**more), given.log_prob_BT)[0]


def by_row(values, mask=MASK):
    return (torch.tensor(values)[:, None] * mask).float()


def test_reinforce_by_hand():
    given = samples([1.0, 2.0, 3.0, 6.0])
    torch.testing.assert_close(gradient(Reinforce(), given), by_row([-0.25, -0.5, -0.75, -1.5]))
    # The mean reward is 3.
    torch.testing.assert_close(
        gradient(Reinforce("batch_mean"), given), by_row([0.5, 0.25, 0.0, -0.75])
    )


def test_rloo_by_hand():
    given = samples([1.0, 2.0, 6.0, 4.0])
    # 1 - 4, 2 - 3.5, 6 - 1.5; alone: none
    advantage = leave_one_out_advantage(given.reward_B, GROUP)
    assert advantage.tolist() == [-3.0, -1.5, 4.5, 0.0]
    torch.testing.assert_close(gradient(Rloo(), given), by_row([0.75, 0.375, -1.125, 0.0]))


def test_rloo_normalised_by_hand():
    given = samples([1.0, 2.0, 6.0, 4.0])
    # Advantages -3, -1.5, 4.5, 0: mean 0, deviation sqrt((9 + 2.25 + 20.25) / 3) = 3.24037
    expected = [x / (3.2403703 + 1e-4) / -4 for x in (-3.0, -1.5, 4.5, 0.0)]
    torch.testing.assert_close(gradient(Rloo(normalize_advantages=True), given), by_row(expected))


def test_grpo_by_hand():
    given = samples([1.0, 2.0, 6.0, 4.0])
    # Mean 3, deviation sqrt((4 + 1 + 9) / 2) = 2.6457513
    advantage = group_advantage(given.reward_B, GROUP)
    expected = [x / (2.6457513 + 1e-4) for x in (-2.0, -1.0, 3.0, 0.0)]
    torch.testing.assert_close(advantage, torch.tensor(expected))
    plain = Grpo(divide_by_group_std=False)  # mean over tokens: half for those of two
    torch.testing.assert_close(gradient(plain, given), by_row([0.25, 0.25, -0.375, 0.0]))
    summed = Grpo(divide_by_group_std=False, token_weighting="sum")
    torch.testing.assert_close(gradient(summed, given), by_row([0.5, 0.25, -0.75, 0.0]))
    tokens = Grpo(divide_by_group_std=False, token_weighting="token_mean")  # 7 of them
    torch.testing.assert_close(gradient(tokens, given), by_row([2 / 7, 1 / 7, -3 / 7, 0.0]))
    constant = Grpo(divide_by_group_std=False, token_weighting="constant_length", max_tokens=10)
    torch.testing.assert_close(gradient(constant, given), by_row([0.05, 0.025, -0.075, 0.0]))


def test_dap_by_hand():
    given = samples(
        [0.5, 0.0, 1.0, 0.0], reference_log_prob_B=torch.tensor([-4.0, -1, -2, -2]), beta=0.5
    )
    # Targets -4 + 1, -1, -2 + 2, -2 against -3, -.5, -2, -2: differences 0, -.5, 2, 0
    out = Dap()(given)
    assert float(out.mean().detach()) == pytest.approx(4.25 / 4)
    torch.testing.assert_close(gradient(Dap(), given), by_row([0.0, 0.25, -1.0, 0.0]))
    torch.testing.assert_close(gradient(Dap(sigma=2.0), given), gradient(Dap(), given))
    assert Dap.contains_kl
    # An entropy bonus as strong as the KL halves the targets: differences 1.5, 0, 2, 1.
    assert float(Dap(entropy_bonus=1.0)(given).mean().detach()) == pytest.approx(7.25 / 4)


LOSSES = [
    Reinforce(),
    Reinforce("batch_mean"),
    Rloo(),
    Rloo(normalize_advantages=True),
    Rloo(ratio="token"),
    Grpo(),
    Grpo(divide_by_group_std=False, token_weighting="token_mean"),
    Grpo(ratio="sequence", token_weighting="sum"),
    Grpo(ratio="sequence_mean"),
    Dap(),
]


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_failed_rows_carry_no_weight(loss):
    """The gradient is that of the batch without them, and 0 in their own row."""
    reference = torch.tensor([-4.0, -1.0, -2.0, -2.0])
    given = samples([1.0, NAN, 3.0, 0.5], reference_log_prob_B=reference, beta=0.5)
    found = gradient(loss, given)
    kept = torch.tensor([0, 2, 3])
    without = PolicySamples(
        given.log_prob_BT.detach()[kept].requires_grad_(),
        MASK[kept],
        given.reward_B[kept],
        GROUP[kept],
        reference_log_prob_B=reference[kept],
        beta=0.5,
    )
    torch.testing.assert_close(found[kept], gradient(loss, without))
    assert (found[1] == 0).all()


@pytest.mark.parametrize("loss", LOSSES, ids=str)
def test_a_batch_that_failed_as_a_whole(loss):
    given = samples([NAN] * 4, reference_log_prob_B=torch.zeros(4), beta=0.5)
    assert float(loss(given).mean().detach()) == 0.0
    assert (gradient(loss, given) == 0).all()


def test_expected_gradient_is_that_of_the_expected_reward():
    """Reinforce over all answers, each weighted by its probability, at a small table."""
    logits = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    log_prob = logits.log_softmax(0)
    weight = log_prob.detach().exp()
    mask = torch.ones(3, 1, dtype=torch.bool)
    out = Reinforce()(
        PolicySamples(log_prob[:, None], mask, weight * reward, torch.zeros(3, dtype=torch.int64))
    )
    found = torch.autograd.grad(out.total, logits)[0]
    # d E[R] / d logit_k = p_k (R_k - E[R])
    expected = weight * (reward - (weight * reward).sum())
    torch.testing.assert_close(found, -expected)


def test_rloo_is_unbiased():
    """Over every pair of samples, weighted by its probability: the gradient of the reward."""
    logits = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    weight = logits.detach().softmax(0)
    total = torch.zeros(3, dtype=torch.float64)
    for i in range(3):
        for j in range(3):
            rows = torch.tensor([i, j])
            given = PolicySamples(
                logits.log_softmax(0)[rows][:, None],
                torch.ones(2, 1, dtype=torch.bool),
                reward[rows],
                torch.zeros(2, dtype=torch.int64),
            )
            total += weight[i] * weight[j] * torch.autograd.grad(Rloo()(given).mean(), logits)[0]
    torch.testing.assert_close(total, -weight * (reward - (weight * reward).sum()))


def test_dap_is_the_reverse_kl_objective():
    """On-policy its gradient is 2 / beta times that of -(E[R] - beta KL)."""
    beta = 0.4
    logits = torch.tensor([0.2, -0.3, 0.5], dtype=torch.float64, requires_grad=True)
    reward = torch.tensor([1.0, 0.0, 0.25], dtype=torch.float64)
    reference = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log()
    total = torch.zeros(3, dtype=torch.float64)
    for k, weight in enumerate(logits.detach().softmax(0)):
        given = PolicySamples(
            logits.log_softmax(0)[k].view(1, 1),
            torch.ones(1, 1, dtype=torch.bool),
            reward[k : k + 1],
            torch.zeros(1, dtype=torch.int64),
            reference_log_prob_B=reference[k : k + 1],
            beta=beta,
        )
        total += weight * torch.autograd.grad(Dap()(given).mean(), logits)[0]
    p = logits.softmax(0)
    objective = (p * reward).sum() - beta * (p * (p.log() - reference)).sum()
    torch.testing.assert_close(total, -2 / beta * torch.autograd.grad(objective, logits)[0])


def test_clipping_by_hand():
    """Ratios e^.5, e^-.5 and 1 of whole completions; advantages 1, -1, then -1, 1."""
    old = torch.tensor([[-1.5, -2.0], [0.0, 7.0], [-1.5, -0.5], [-1.0, -1.0]])
    up = samples([1.0, -1.0, 0.0, 0.0], old_log_prob_BT=old)
    found = Reinforce()(up)
    # Above 1.2 with a gain: held at 1.2, no gradient. Below .8 with a loss: held at .8.
    assert float(found.total.detach()) == pytest.approx(-1.2 + 0.8)
    assert (gradient(Reinforce(), up) == 0).all()
    assert float(found.numbers["clipped_share"]) == 0.5
    down = samples([-1.0, 1.0, 0.0, 0.0], old_log_prob_BT=old)
    # The other way round nothing is held: the worse of the two counts.
    high, low = math.exp(0.5), math.exp(-0.5)
    assert float(Reinforce()(down).total.detach()) == pytest.approx(high - low)
    torch.testing.assert_close(gradient(Reinforce(), down), by_row([high / 4, -low / 4, 0.0, 0.0]))
    free = Reinforce(clip_low=None, clip_high=None)
    torch.testing.assert_close(gradient(free, up), by_row([-high / 4, low / 4, 0.0, 0.0]))
    # Per token only the first token of row 0 is beyond; its second keeps its gradient.
    tokens = Reinforce(ratio="token")
    torch.testing.assert_close(gradient(tokens, up)[0], torch.tensor([0.0, -0.25]))


def test_penalties():
    """A penalty per token is weighted as the loss is, one per completion counts once."""
    reward = [0.0, 0.0, 0.0, NAN]

    def total(loss, penalty):
        return float(loss(samples(reward, penalty=penalty)).mean().detach())

    per_token = torch.tensor([[1.0, 2.0], [3.0, 0.0], [5.0, 6.0], [70.0, 80.0]])
    per_row = torch.tensor([3.0, 3.0, 11.0, 150.0])
    assert total(Rloo(), per_token) == pytest.approx(17 / 3)
    assert total(Rloo(), per_row) == pytest.approx(17 / 3)
    assert total(Grpo(), per_token) == pytest.approx((1.5 + 3 + 5.5) / 3)
    assert total(Grpo(), per_row) == pytest.approx(17 / 3)
    assert total(Grpo(token_weighting="token_mean"), per_token) == pytest.approx(17 / 5)
    with pytest.raises(ValueError, match="token_mean"):
        total(Grpo(token_weighting="token_mean"), per_row)


@pytest.mark.parametrize("loss", [Reinforce(), Grpo(), Grpo(token_weighting="token_mean"), Rloo()])
def test_ranks_average_to_the_whole_batch(loss):
    """Two ranks with different numbers of scored rows: DDP's mean is the whole batch's gradient."""
    log_prob = torch.tensor([[-1.0, -2.0], [-0.5, -9.0], [-1.5, -0.5], [-1.0, -1.0]])
    reward, group = torch.tensor([1.0, 3.0, NAN, 2.0]), torch.tensor([0, 0, 1, 2])
    whole = PolicySamples(log_prob.clone().requires_grad_(), MASK, reward, group)
    expected = gradient(loss, whole)
    parts = [
        PolicySamples(log_prob[r].clone().requires_grad_(), MASK[r], reward[r], group[r])
        for r in (slice(0, 2), slice(2, 4))
    ]
    count = sum(loss(part).count for part in parts)
    found = torch.cat([gradient(loss, part, count=count, num_ranks=2) for part in parts]) / 2
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: Rloo(clip_low=0.0), "clip_low"),
        (lambda: Grpo(clip_high=-1.0), "clip_high"),
        (lambda: Grpo(token_weighting="constant_length"), "max_tokens"),
        (lambda: Grpo(max_tokens=7), "max_tokens"),
        (lambda: Dap(sigma=0.0), "sigma"),
        (lambda: Dap(entropy_bonus=-0.1), "entropy_bonus"),
        (lambda: Dap()(samples([0.0] * 4)), "reference_log_prob_B"),
        (lambda: Dap()(samples([0.0] * 4, reference_log_prob_B=torch.zeros(4))), "beta"),
        (
            lambda: Dap()(
                samples([0.0] * 4, reference_log_prob_B=torch.zeros(4), penalty=torch.zeros(4))
            ),
            "contains the KL",
        ),
    ],
)
def test_mistakes_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()


@pytest.mark.parametrize("loss", [Reinforce(), Rloo(), Grpo(divide_by_group_std=False)])
@pytest.mark.parametrize("columns", [None, 1, 2])
def test_an_importance_weight_multiplies_the_row_of_the_loss(loss, columns):
    penalty = {None: None, 1: torch.full((4,), 0.5), 2: torch.full((4, 2), 0.5)}[columns]
    given = samples([1.0, 2.0, 6.0, 4.0], penalty=penalty)
    rows = []
    for row in range(4):
        weight_B = torch.zeros(4).index_fill(0, torch.tensor(row), 1.0)
        given.importance_B = weight_B
        rows.append((loss(given).total, gradient(loss, given)))
    given.importance_B = torch.tensor([1.0, 0.5, 2.0, 3.0])
    expected = [
        sum(w * row[i] for w, row in zip((1, 0.5, 2, 3), rows, strict=True)) for i in (0, 1)
    ]
    torch.testing.assert_close(loss(given).total, expected[0])
    torch.testing.assert_close(gradient(loss, given), expected[1])
    given.importance_B = None
    plain = gradient(loss, given)
    given.importance_B = torch.ones(4)
    assert torch.equal(gradient(loss, given), plain)


def test_weighted_samples_of_a_rounded_policy_have_the_gradient_of_the_scored_one():
    """All completions of two tokens over three words, enumerated with their sampled probability."""
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(3, generator=generator), torch.randn(3, 3, generator=generator)
    first.requires_grad_(), second.requires_grad_()
    reward = torch.randn(9, generator=generator)
    noise = torch.randn(9, 2, generator=generator) * 0.1
    word_1, word_2 = torch.arange(9) // 3, torch.arange(9) % 3
    scored = torch.stack([first.log_softmax(-1)[word_1], second.log_softmax(-1)[word_1, word_2]], 1)
    exact = torch.autograd.grad((scored.sum(-1).exp() * reward).sum(), first, retain_graph=True)[0]
    sampled = scored.detach() + noise
    sampled_probability = sampled.sum(-1).exp()
    errors = []
    for threshold in (1e-3, None):
        total = torch.zeros(())
        for row in range(9):
            gap = scored.detach()[row : row + 1] - sampled[row : row + 1]
            one = PolicySamples(
                scored[row : row + 1],
                torch.ones(1, 2, dtype=torch.bool),
                reward[row : row + 1],
                torch.zeros(1, dtype=torch.int64),
                importance_B=importance_weight(gap, threshold),
            )
            total = total - sampled_probability[row] * Reinforce()(one).mean()
        made = torch.autograd.grad(total, first, retain_graph=True)[0]
        errors.append((made - exact).abs().max())
    assert errors[0] < 1e-6 < 1e-3 < errors[1]


@pytest.mark.parametrize(
    ("loss", "scale"),
    [
        (Rloo(clip_low=None, clip_high=None), 1.0),
        (Reinforce(clip_low=None, clip_high=None), 1.0),
        # The group's mean holds the own row: (n - 1) / n of it.
        (
            Grpo(divide_by_group_std=False, token_weighting="sum", clip_low=None, clip_high=None),
            0.5,
        ),
    ],
    ids=["rloo", "reinforce", "grpo"],
)
def test_second_updates_have_the_gradient_at_the_new_policy(loss, scale):
    """Over all pairs that the old policy can sample, by enumeration; five answers."""
    generator = torch.Generator().manual_seed(1)
    draw = {"generator": generator, "dtype": torch.float64}
    old, reward = torch.randn(5, **draw), torch.rand(5, **draw)
    new = old + 0.3 * torch.randn(5, **draw)
    total = torch.zeros_like(old)
    for pair in itertools.product(range(5), repeat=2):
        rows, logits = torch.tensor(pair), new.clone().requires_grad_()
        samples = PolicySamples(
            log_prob_BT=logits.log_softmax(-1)[rows][:, None],
            token_mask_BT=torch.ones(2, 1, dtype=torch.bool),
            reward_B=reward[rows],
            group_B=torch.zeros(2, dtype=torch.int64),
            old_log_prob_BT=old.log_softmax(-1)[rows][:, None],
        )
        loss(samples).mean().backward()
        total += old.softmax(-1)[rows].prod() * logits.grad
    exact = new.clone().requires_grad_()
    (-(exact.softmax(-1) * reward).sum()).backward()
    torch.testing.assert_close(total, scale * exact.grad, rtol=0, atol=1e-12)
