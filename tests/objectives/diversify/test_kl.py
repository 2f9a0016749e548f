"""Each KL estimator's gradient, summed over all answers, against the one it is said to have."""

import math

import pytest
import torch

from triptych.objectives.diversify.kl import KlPenalty, exact_kl, k1, k2, k3, k3_straight_through
from triptych.objectives.diversify.policy_loss import PolicySamples, Reinforce

REFERENCE = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
LOGITS = torch.tensor([0.3, -0.4, 0.9, 0.1], dtype=torch.float64)
MASK = torch.ones(4, 1, dtype=torch.bool)


def numerically(function):
    """Gradient by central differences at LOGITS."""
    step, gradient = 1e-6, []
    for k in range(4):
        change = torch.zeros(4, dtype=torch.float64)
        change[k] = step
        gradient.append((function(LOGITS + change) - function(LOGITS - change)) / (2 * step))
    return torch.tensor([float(g) for g in gradient], dtype=torch.float64)


def reverse(logits):
    p = [math.exp(x) for x in logits.tolist()]
    p = [x / sum(p) for x in p]
    return sum(a * math.log(a / b) for a, b in zip(p, REFERENCE.tolist(), strict=True))


def forward(logits):
    p = [math.exp(x) for x in logits.tolist()]
    p = [x / sum(p) for x in p]
    return sum(b * math.log(b / a) for a, b in zip(p, REFERENCE.tolist(), strict=True))


def expected_gradient(kl):
    """What training minimises, for rewards of 0 and beta = 1, in exact expectation."""
    logits = LOGITS.clone().requires_grad_()
    log_prob = logits.log_softmax(0)[:, None]
    weight = log_prob[:, 0].detach().exp()
    reference = REFERENCE.log()[:, None]
    penalty = kl.in_loss(log_prob, reference, MASK)
    if penalty is not None:
        penalty = weight * (penalty if penalty.dim() == 1 else penalty[:, 0])
    loss = Reinforce(clip_low=None, clip_high=None)(
        PolicySamples(
            log_prob,
            MASK,
            -weight * kl.in_reward(log_prob, reference, MASK),
            torch.zeros(4, dtype=torch.int64),
            penalty=penalty,
        )
    ).total
    return torch.autograd.grad(loss, logits)[0]


REVERSE, FORWARD = numerically(reverse), numerically(forward)
CASES = [
    (KlPenalty("k1", "reward"), REVERSE, "reverse"),
    (KlPenalty("k1", "loss"), torch.zeros(4, dtype=torch.float64), "none"),
    (KlPenalty("k1", "loss", importance_weighted=True), REVERSE, "reverse"),
    (KlPenalty("k2", "loss"), REVERSE, "reverse"),
    (KlPenalty("k3", "reward"), REVERSE - FORWARD, "neither"),
    (KlPenalty("k3", "loss"), FORWARD, "forward"),
    (KlPenalty("k3", "loss", importance_weighted=True), REVERSE, "reverse"),
    (KlPenalty("k3_straight_through", "loss"), REVERSE, "reverse"),
    (KlPenalty("forward", "reward"), FORWARD, "forward"),
]


@pytest.mark.parametrize("level", ["token", "sequence"])
@pytest.mark.parametrize(("kl", "gradient", "name"), CASES, ids=lambda x: str(x)[:60])
def test_expected_gradient(kl, gradient, name, level):
    kl = KlPenalty(kl.estimator, kl.place, level, importance_weighted=kl.importance_weighted)
    assert kl.gradient == name
    torch.testing.assert_close(expected_gradient(kl), gradient, rtol=1e-6, atol=1e-8)


def test_k2_in_the_reward_is_neither():
    found = expected_gradient(KlPenalty("k2", "reward"))
    assert KlPenalty("k2", "reward").gradient == "neither"
    for other in (REVERSE, FORWARD, REVERSE - FORWARD):
        assert float((found - other).abs().max()) > 0.02


def test_expected_values_and_exact_kls():
    # KL(.5 .5 || .25 .75) = ln 2 / 2 + ln(2/3) / 2; the other way: ln(1/2) / 4 + 3 ln(3/2) / 4
    p, q = torch.tensor([0.5, 0.5]).log(), torch.tensor([0.25, 0.75]).log()
    assert float(exact_kl("reverse", p, q)) == pytest.approx(0.143841, abs=1e-6)
    assert float(exact_kl("forward", p, q)) == pytest.approx(0.130812, abs=1e-6)
    for estimator in (k1, k3, k3_straight_through):
        assert float((p.exp() * estimator(p, q)).sum()) == pytest.approx(0.143841, abs=1e-6)
    # k2: (ln 2)^2 / 4 + (ln(2/3))^2 / 4, which is no KL
    assert float((p.exp() * k2(p, q)).sum()) == pytest.approx(0.161213, abs=1e-6)


def test_monte_carlo_agrees_with_the_expectation():
    generator = torch.Generator().manual_seed(0)
    log_prob = LOGITS.log_softmax(0)
    drawn = torch.multinomial(log_prob.exp(), 20000, replacement=True, generator=generator)
    score = torch.nn.functional.one_hot(drawn, 4) - log_prob.exp()
    log_ratio = log_prob[drawn] - REFERENCE.log()[drawn]
    for coefficient, gradient in (
        (k1(log_ratio, torch.zeros_like(log_ratio)), REVERSE),
        (-torch.expm1(-log_ratio), FORWARD),
    ):
        samples = coefficient[:, None] * score
        error = samples.std(0) / len(drawn) ** 0.5
        assert ((samples.mean(0) - gradient).abs() < 3 * error).all()


def test_tokens_and_sequences():
    log_prob = torch.tensor([[-1.0, -2.0], [-1.0, -9.0]])
    reference = torch.tensor([[-1.5, -1.0], [-3.0, -9.0]])
    mask = torch.tensor([[True, True], [True, False]])
    for level in ("token", "sequence"):
        k1_B = KlPenalty("k1", "reward", level).in_reward(log_prob, reference, mask)
        assert k1_B.tolist() == [-0.5, 2.0]
    per_token = KlPenalty("k2", "loss", "token").in_loss(log_prob, reference, mask)
    assert per_token.tolist() == [[0.125, 0.5], [2.0, 0.0]]
    whole = KlPenalty("k2", "loss", "sequence").in_loss(log_prob, reference, mask)
    assert whole.tolist() == [0.125, 2.0]
    summed = KlPenalty("k2", "reward", "token").in_reward(log_prob, reference, mask)
    assert summed.tolist() == [0.625, 2.0]
    assert KlPenalty("k2", "reward").in_loss(log_prob, reference, mask) is None
    assert KlPenalty("k2", "loss").in_reward(log_prob, reference, mask).tolist() == [0.0, 0.0]


def test_replaced_reference_of_whole_completions():
    log_prob, mask = torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2, dtype=torch.bool)
    reference, replaced = torch.tensor([[-1.5, -1.5]]), torch.tensor([-1.0])
    found = KlPenalty("k1").in_reward(log_prob, reference, mask, replaced)
    assert found.tolist() == [-2.0]
    with pytest.raises(ValueError, match="level: sequence"):
        KlPenalty("k3", "loss", "token").in_loss(log_prob, reference, mask, replaced)


def test_off_policy_weights_are_the_ratio():
    log_prob = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old, mask = torch.tensor([[-1.5, -2.5]]), torch.ones(1, 2, dtype=torch.bool)
    reference = torch.tensor([[-2.0, -2.0]])
    token = KlPenalty("k1", "loss", "token", importance_weighted=True)
    found = token.in_loss(log_prob, reference, mask, old_log_prob_BT=old)
    assert found.tolist() == [[pytest.approx(math.exp(0.5)), 0.0]]
    whole = KlPenalty("k1", "loss", "sequence", importance_weighted=True)
    found = whole.in_loss(log_prob, reference, mask, old_log_prob_BT=old)
    assert found.tolist() == [pytest.approx(math.e)]


def test_limit_of_the_log_ratio():
    log_prob, mask = torch.tensor([[-200.0]], requires_grad=True), torch.tensor([[True]])
    reference = torch.tensor([[-1.0]])
    assert KlPenalty("k3", "loss").in_loss(log_prob, reference, mask).isinf().all()
    kl = KlPenalty("k3", "loss", max_log_ratio=5.0)
    found = kl.in_loss(log_prob, reference, mask)
    assert float(found.detach()) == pytest.approx(math.exp(5) - 6, rel=1e-5)
    assert torch.autograd.grad(found.sum(), log_prob)[0].tolist() == [[0.0]]


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"estimator": "k3_straight_through"}, "k3_straight_through"),
        ({"estimator": "forward", "place": "loss"}, "k3"),
        ({"importance_weighted": True}, "importance_weighted"),
        ({"max_log_ratio": 0.0}, "max_log_ratio"),
    ],
)
def test_settings_that_mean_nothing(settings, named):
    with pytest.raises(ValueError, match=named):
        KlPenalty(**settings)
