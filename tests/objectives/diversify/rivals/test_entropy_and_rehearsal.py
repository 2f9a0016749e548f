"""Entropy bonus and rehearsal: values by hand, gradients by finite differences."""

import math

import pytest
import torch

from tests.objectives.diversify.rivals.enumerated_completions import (
    MASK,
    PARAMETERS,
    finite_differences,
    log_prob,
    token_log_prob,
)
from triptych.objectives.diversify.rivals.entropy_bonus import EntropyBonus, EntropyControl
from triptych.objectives.diversify.rivals.rehearsal import Rehearsal

# The reference of the five completions; the policy is elsewhere.
REFERENCE = torch.tensor([-0.2, 0.5, 0.1, 0.6, 0.4, -0.9, 0.3], dtype=torch.float64)


def test_a_static_bonus_by_hand():
    control = EntropyControl(EntropyBonus(0.5))
    entropy = torch.tensor([[1.0, 2.0], [4.0, 99.0]], requires_grad=True)
    term = control.term(entropy, torch.tensor([[True, True], [True, False]]))
    assert float(term.mean().detach()) == pytest.approx(-0.5 * 7 / 3)
    (gradient,) = torch.autograd.grad(term.mean(), entropy)
    torch.testing.assert_close(gradient, torch.tensor([[-1, -1], [-1, 0.0]]) / 6)
    control.end_step(100.0)
    assert (control.coefficient, control.applied) == (0.5, 0.5)


def test_an_adaptive_bonus_by_hand():
    """It acts only after a step at or below the target, with what it rose to by then."""
    bonus = EntropyBonus(0.1, True, target_nats=1.0, most_coefficient=0.25, coefficient_step=0.1)
    control = EntropyControl(bonus)
    seen = []
    for entropy in (0.9, 1.0, 0.5, 1.1, 3.0, 3.0, 3.0):
        seen.append((round(control.applied, 9), round(control.coefficient, 9)))
        control.end_step(entropy)
    assert seen == [
        *((0.0, 0.1), (0.2, 0.2), (0.25, 0.25), (0.25, 0.25)),
        *((0.0, 0.15), (0.0, 0.05), (0.0, 0.0)),
    ]
    resumed = EntropyControl(bonus)
    resumed.load_state_dict(control.state_dict())
    assert (resumed.coefficient, resumed.last_entropy) == (control.coefficient, 3.0)


def exact_term(rehearsal, parameters):
    """Expectation of the term under the reference's completions, per completion."""
    chance = log_prob(REFERENCE).exp()
    rows = token_log_prob(parameters), token_log_prob(REFERENCE), MASK
    totals = [rehearsal.term(*(x[i : i + 1] for x in rows)).total for i in range(len(MASK))]
    return (chance * torch.stack(totals)).sum()


def next_word_divergences(parameters, divergence):
    """The divergence at each prefix, by the reference's probability of the prefix."""

    def of(p, q):
        if divergence == "forward":
            return (q * (q / p).log()).sum()
        mean = (p + q) / 2
        return (p * (p / mean).log()).sum() + (q * (q / mean).log()).sum()

    policy_first, first = (x[:3].softmax(0) for x in (parameters, REFERENCE))
    policy_second, second = (x[3:].view(2, 2).softmax(1) for x in (parameters, REFERENCE))
    total = of(policy_first, first)
    for word in range(2):
        total = total + first[1 + word] * of(policy_second[word], second[word])
    return total


@pytest.mark.parametrize("divergence", ["forward", "js"])
def test_the_rehearsal_is_the_divergence_and_has_its_gradient(divergence):
    """By enumeration of the reference's completions: value, and gradient by finite differences."""
    rehearsal = Rehearsal(divergence, coefficient=0.3)
    parameters = PARAMETERS.clone().requires_grad_()
    found = exact_term(rehearsal, parameters)
    expected = 0.3 * next_word_divergences(PARAMETERS, divergence)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-10, atol=1e-12)
    gradient = torch.autograd.grad(found, parameters)[0]
    differences = finite_differences(lambda x: 0.3 * next_word_divergences(x, divergence))
    torch.testing.assert_close(gradient, differences, rtol=1e-7, atol=1e-9)


def test_the_forward_rehearsal_is_the_kl_of_whole_completions():
    q, p = log_prob(REFERENCE), log_prob(PARAMETERS)
    found = exact_term(Rehearsal("forward", coefficient=1.0), PARAMETERS)
    torch.testing.assert_close(found, (q.exp() * (q - p)).sum(), rtol=1e-10, atol=1e-12)


def test_a_rehearsed_token_by_hand():
    """A token at twice, one at half of the reference's probability; padding does not count."""
    rows = torch.tensor([[0.2, 0.1, 1.0]]).log(), torch.tensor([[0.1, 0.2, 0.5]]).log()
    mask = torch.tensor([[True, True, False]])
    js = [2 * math.log(2) - 3 * math.log(1.5), 0.5 * math.log(0.5) - 1.5 * math.log(0.75)]
    for divergence, expected in (("forward", 0.0), ("js", sum(js) / 2)):
        term = Rehearsal(divergence, coefficient=0.5).term(*rows, mask)
        assert float(term.mean()) == pytest.approx(0.5 * expected, abs=1e-6)
        assert float(term.numbers["rehearsal_nats_per_token"]) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (EntropyBonus, "coefficient is 0.0"),
        (lambda: EntropyBonus(math.inf), "coefficient is inf"),
        (lambda: EntropyBonus(0.1, True, least_coefficient=2.0), "least_coefficient"),
        (lambda: EntropyBonus(0.1, coefficient_step=0.0), "coefficient_step"),
        (lambda: Rehearsal(coefficient=0.0), "coefficient is 0.0"),
        (lambda: Rehearsal(num_samples=0), "num_samples"),
        (lambda: Rehearsal(solved_share=0.0), "solved_share"),
    ],
)
def test_mistakes_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()
