"""Training of tabular policies with the losses of Triptych: exact gradients or samples."""

# Shapes: S seeds, K answers, N samples a seed and step, R exact runs, B rows

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.diversify.kl import Divergence, KlPenalty
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.policy_loss import Dap, PolicyLoss, PolicySamples, Reinforce

Arm = Literal["none", "algorithm 1", "algorithm 2"]


@dataclass(frozen=True)
class Task:
    """Rewards of K answers and their probabilities under the reference.

    Args:
        reward_K: Rewards.
        reference_K: Probabilities under the reference.
        threshold: Minimum reward of a good answer, for MARA.
    """

    reward_K: tuple[float, ...]
    reference_K: tuple[float, ...]
    threshold: float

    def rewards(self) -> Tensor:
        """Return the rewards, (K,), float64."""
        return torch.tensor(self.reward_K, dtype=torch.float64)

    def reference_log_prob(self) -> Tensor:
        """Return the log-probabilities under the reference, (K,), float64."""
        return torch.tensor(self.reference_K, dtype=torch.float64).log().log_softmax(-1)

    def mara(self, arm: Arm) -> Mara | None:
        """Return the augmentation of an arm."""
        if arm == "none":
            return None
        return Mara(threshold=self.threshold, algorithm=1 if arm == "algorithm 1" else 2)


@dataclass(frozen=True)
class Layout:
    """A loss with its KL penalty; `divergence` is the direction that this penalty minimises."""

    name: str
    loss: PolicyLoss
    kl: KlPenalty | None
    divergence: Divergence


def train_exactly(
    task: Task, layout: Layout, runs: Sequence[tuple[Arm, float]], steps: int
) -> list[Tensor]:
    """Train with the exact expected gradient of the loss, starting from the reference.

    Every answer is one row, weighted by its probability. `Reinforce` is linear in reward and
    penalty, so these are weighted. For `Dap` both sides of the squared difference are weighted by
    the square root. Each step divides the gradient by the curvature of the objective, because plain
    steps slow down with small beta. Under the forward KL the curvature changes, so a step is
    limited to 1 nat.

    Args:
        task: Rewards and reference.
        layout: Layout with `Reinforce` or `Dap` as its loss.
        runs: Arm and beta of each run; all runs train in parallel, one group each.
        steps: Number of steps.

    Returns:
        Log-probabilities (K,) of each run.
    """
    num_answers, num_runs = len(task.reward_K), len(runs)
    group_K = torch.zeros(num_answers, dtype=torch.int64)
    plain_K, reference_K = task.rewards(), task.reference_log_prob()
    rewards, references = [], []
    for arm, beta in runs:
        mara = task.mara(arm)
        if mara is None:
            rewards.append(plain_K)
            references.append(reference_K)
            continue
        augmented = mara.augment(plain_K, reference_K, group_K, beta)
        rewards.append(augmented.reward_B)
        references.append(augmented.reference_log_prob_B)
    reward_B, reference_B = torch.cat(rewards), torch.cat(references)
    beta_R = torch.tensor([beta for _, beta in runs], dtype=torch.float64)
    beta_B = beta_R.repeat_interleave(num_answers)
    group_B = torch.arange(num_runs).repeat_interleave(num_answers)
    one_token_B1 = torch.ones(len(reward_B), 1, dtype=torch.bool)
    largest = 1.0 if layout.divergence == "forward" else math.inf
    logits_RK = reference_K.repeat(num_runs, 1).requires_grad_()
    for _ in range(steps):
        log_prob_RK = logits_RK.log_softmax(-1)
        log_prob_B1 = log_prob_RK.reshape(-1, 1)
        weight_B = log_prob_B1[:, 0].detach().exp()
        if isinstance(layout.loss, Dap):
            # sigma = 1: rewards are in units of beta. The half cancels the factor of the square.
            root_B = (weight_B * beta_B / 2).sqrt()
            samples = PolicySamples(
                log_prob_B1 * root_B[:, None],
                one_token_B1,
                reward_B / beta_B * root_B,
                group_B,
                reference_log_prob_B=reference_B * root_B,
                beta=1.0,
            )
        else:
            assert isinstance(layout.loss, Reinforce)
            optimised_B, penalty_B = _with_kl(
                layout.kl, beta_B, reward_B, reference_B, log_prob_B1, one_token_B1
            )
            samples = PolicySamples(
                log_prob_B1,
                one_token_B1,
                weight_B * optimised_B,
                group_B,
                penalty=None if penalty_B is None else weight_B * penalty_B,
            )
        (gradient_RK,) = torch.autograd.grad(layout.loss(samples).total, logits_RK)
        with torch.no_grad():
            prob_RK = log_prob_RK.exp().clamp_min(1e-300)
            curvature_RK = beta_R[:, None].expand_as(prob_RK)
            if layout.divergence == "forward":
                curvature_RK = curvature_RK * reference_B.exp().view_as(prob_RK) / prob_RK
            pull_RK = -gradient_RK / prob_RK
            weight_RK = prob_RK / curvature_RK  # keeps the sum of changes at 0
            level_R1 = (weight_RK * pull_RK).sum(-1, keepdim=True) / weight_RK.sum(-1, keepdim=True)
            change_RK = (pull_RK - level_R1) / curvature_RK
            logits_RK += change_RK.clamp(-largest, largest)
    return list(logits_RK.detach().log_softmax(-1))


def train_on_samples(
    task: Task,
    layout: Layout,
    runs: Sequence[tuple[Arm, float]],
    *,
    num_seeds: int,
    steps: int,
    num_samples: int = 16,
    learning_rate: float = 0.2,
    seed: int = 1,
) -> list[Tensor]:
    """Train by plain gradient steps on sampled batches, all runs and seeds in parallel.

    Each seed of each run is a separate prompt: a group of `num_samples` rows with one row of
    logits. The losses therefore run as in a real training, and seeds do not interact.

    Args:
        task: Rewards and reference.
        layout: Layout with any loss except `Dap`.
        runs: Arm and beta of each run.
        num_seeds: Seeds of each run.
        steps: Number of steps.
        num_samples: Samples per seed and step.
        learning_rate: Learning rate on the logits.
        seed: Seed of all samples.

    Returns:
        Probabilities (S, K) of each run, averaged over the last quarter of the steps.
    """
    generator = torch.Generator().manual_seed(seed)
    reward_K, reference_K = task.rewards(), task.reference_log_prob()
    rows_each = num_seeds * num_samples
    logits_GK = reference_K.repeat(len(runs) * num_seeds, 1).requires_grad_()
    group_B = torch.arange(len(logits_GK)).repeat_interleave(num_samples)
    one_token_B1 = torch.ones(len(group_B), 1, dtype=torch.bool)
    beta_B = torch.tensor([beta for _, beta in runs], dtype=torch.float64)
    beta_B = beta_B.repeat_interleave(rows_each)
    averaged_GK, num_averaged = torch.zeros_like(logits_GK), 0
    for step in range(steps):
        log_prob_GK = logits_GK.log_softmax(-1)
        answer_GN = torch.multinomial(
            log_prob_GK.detach().exp(), num_samples, replacement=True, generator=generator
        )
        answer_B = answer_GN.reshape(-1)
        log_prob_B1 = log_prob_GK.gather(1, answer_GN).reshape(-1, 1)
        reward_B, reference_B = reward_K[answer_B], reference_K[answer_B]
        for number, (arm, beta) in enumerate(runs):
            mara = task.mara(arm)
            if mara is None:
                continue
            rows = slice(number * rows_each, (number + 1) * rows_each)
            augmented = mara.augment(reward_B[rows], reference_B[rows], group_B[rows], beta)
            reward_B[rows] = augmented.reward_B
            reference_B[rows] = augmented.reference_log_prob_B
        optimised_B, penalty_B = _with_kl(
            layout.kl, beta_B, reward_B, reference_B, log_prob_B1, one_token_B1
        )
        samples = PolicySamples(log_prob_B1, one_token_B1, optimised_B, group_B, penalty=penalty_B)
        # Sum the means of the seeds, so that every seed gets an independent gradient.
        (gradient_GK,) = torch.autograd.grad(layout.loss(samples).total / num_samples, logits_GK)
        with torch.no_grad():
            logits_GK -= learning_rate * gradient_GK
            if step >= steps - max(1, steps // 4):
                averaged_GK += logits_GK.softmax(-1)
                num_averaged += 1
    return list((averaged_GK / num_averaged).detach().view(len(runs), num_seeds, -1))


def _with_kl(
    kl: KlPenalty | None,
    beta: float | Tensor,
    reward_B: Tensor,
    reference_B: Tensor,
    log_prob_B1: Tensor,
    mask_B1: Tensor,
) -> tuple[Tensor, Tensor | None]:
    """Return the reward after the KL in the reward, and the penalty of the loss."""
    if kl is None:
        return reward_B, None
    reference_B1 = reference_B[:, None]
    inside_B = kl.in_reward(log_prob_B1, reference_B1, mask_B1, reference_B)
    penalty_B = kl.in_loss(log_prob_B1, reference_B1, mask_B1, reference_B)
    return reward_B - beta * inside_B, None if penalty_B is None else beta * penalty_B
