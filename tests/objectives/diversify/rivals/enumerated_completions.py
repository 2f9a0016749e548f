"""A policy of five completions, enumerated: exact expectations over all groups of completions."""

# Shapes: A completions that there are, T completion positions, N of a group

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from triptych.objectives.diversify.policy_loss import PolicyLoss, PolicySamples

# A completion is the end token alone, or two words of two.
MASK = torch.tensor([[True, False], *[[True, True]] * 4])
NUM = len(MASK)
PARAMETERS = torch.tensor([0.3, -0.4, 0.9, 0.2, -0.7, 0.5, 0.1], dtype=torch.float64)


def token_log_prob(parameters: Tensor) -> Tensor:
    """Log-probability of each token of each completion: (A, T)."""
    first = parameters[:3].log_softmax(0)  # end, a, b
    second = parameters[3:].view(2, 2).log_softmax(1)
    rows = [torch.stack([first[0], first.new_zeros(())])]
    for word, after in itertools.product(range(2), range(2)):
        rows.append(torch.stack([first[1 + word], second[word, after]]))
    return torch.stack(rows)


def log_prob(parameters: Tensor) -> Tensor:
    """Log-probability of each completion: (A,)."""
    return token_log_prob(parameters).sum(1)


def expected_gradient(loss: PolicyLoss, reward_A: list[float], group_size: int) -> Tensor:
    """Expectation of the gradient of the loss over all groups of the policy's samples, exactly."""
    parameters = PARAMETERS.clone().requires_grad_()
    groups = list(itertools.product(range(NUM), repeat=group_size))
    rows = torch.tensor(groups).flatten()
    weight = log_prob(parameters).detach()[rows].view(-1, group_size).sum(1).exp()
    reward = torch.tensor(reward_A, dtype=torch.float64)[rows]
    samples = PolicySamples(
        token_log_prob(parameters)[rows],
        MASK[rows],
        reward,
        torch.arange(len(groups)).repeat_interleave(group_size),
        scored_reward_B=reward,
        importance_B=weight.repeat_interleave(group_size),
    )
    total = loss(samples).total / group_size
    return torch.autograd.grad(total, parameters)[0]


def finite_differences(function: Callable[[Tensor], Tensor], step: float = 1e-5) -> Tensor:
    """Gradient of a function of the parameters, by central differences."""
    moves = step * torch.eye(len(PARAMETERS), dtype=torch.float64)
    return torch.stack([function(PARAMETERS + m) - function(PARAMETERS - m) for m in moves]) / (
        2 * step
    )
