"""Leakage of a message: the held-out accuracy of classifiers trained on it.

Three families, since each is blind to something: a linear classifier, linear discriminant analysis
(no steps, so nothing to overfit with) and a network with one hidden layer. Those that take steps
stop early, by the loss on a fifth of the samples. What a probe at chance proves depends on what it
would have found: see `metrics.commune.probe_power`.
"""

from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: N samples to fit on, B held-out samples, R numbers of a message, C classes

ProbeFamily = Literal["linear", "lda", "network"]
FAMILIES: tuple[ProbeFamily, ...] = get_args(ProbeFamily)
HIDDEN_UNITS = 64
_BATCH, _PATIENCE, _CHECK_EVERY = 256, 15, 8


def family_accuracies(
    message_NR: Tensor,
    label_N: Tensor,
    held_out_BR: Tensor,
    held_out_label_B: Tensor,
    num_classes: int,
    seed: int = 0,
) -> dict[ProbeFamily, float]:
    """Return the held-out accuracy of every family; arguments are those of `probe_accuracy`."""
    samples = (message_NR, label_N, held_out_BR, held_out_label_B, num_classes)
    return {
        "linear": probe_accuracy(*samples, seed=seed),
        "lda": discriminant_accuracy(*samples),
        "network": probe_accuracy(*samples, hidden=HIDDEN_UNITS, seed=seed),
    }


def probe_accuracy(
    message_NR: Tensor,
    label_N: Tensor,
    held_out_BR: Tensor,
    held_out_label_B: Tensor,
    num_classes: int,
    hidden: int | None = None,
    num_steps: int = 1000,
    seed: int = 0,
) -> float:
    """Fit a probe and return its accuracy on held-out samples.

    Messages are z-scored by the training samples, without their constant dimensions. Adam takes
    batches of 256, with weight decay, until the loss on a fifth of the samples no longer falls; the
    weights of its minimum are scored.

    Args:
        message_NR: Messages to fit on.
        label_N: int64; the class that should not be predictable from a message.
        held_out_BR: Messages to score on.
        held_out_label_B: Their classes.
        num_classes: Number of classes; chance is 1 / num_classes if they are equally frequent.
        hidden: Units of a hidden layer; None: a linear probe.
        num_steps: Most steps of Adam.
        seed: Seed of the weights, the batches and the fifth.

    Raises:
        ValueError: if there are no messages to fit or to score on.
    """
    scored = _scored(message_NR, held_out_BR)
    if scored is None:
        return _commonest(label_N, held_out_label_B)
    fit_NR, score_BR = scored
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        probe = _stopped_early(fit_NR, label_N, num_classes, hidden, num_steps)
    with torch.no_grad():
        return float((probe(score_BR).argmax(1) == held_out_label_B).float().mean())


@torch.no_grad()
def discriminant_accuracy(
    message_NR: Tensor,
    label_N: Tensor,
    held_out_BR: Tensor,
    held_out_label_B: Tensor,
    num_classes: int,
) -> float:
    """Return the held-out accuracy of linear discriminant analysis; see `probe_accuracy`.

    The covariance within classes is shrunk towards a multiple of the identity by the intensity of
    Ledoit and Wolf (2004), which keeps it invertible where messages are few.
    """
    scored = _scored(message_NR, held_out_BR)
    if scored is None:
        return _commonest(label_N, held_out_label_B)
    fit_NR, score_BR = scored[0].double(), scored[1].double()
    one_hot_NC = F.one_hot(label_N, num_classes).double()
    counts_C = one_hot_NC.sum(0)
    means_CR = (one_hot_NC.mT @ fit_NR) / counts_C.clamp_min(1)[:, None]
    covariance_RR = _shrunk_covariance(fit_NR - means_CR[label_N])
    weights_RC = torch.linalg.solve(covariance_RR, means_CR.mT)
    offset_C = -0.5 * (means_CR * weights_RC.mT).sum(1) + (counts_C / len(fit_NR)).log()
    return float(((score_BR @ weights_RC + offset_C).argmax(1) == held_out_label_B).float().mean())


def _shrunk_covariance(centred_NR: Tensor) -> Tensor:
    num_samples, width = centred_NR.shape
    covariance_RR = centred_NR.mT @ centred_NR / num_samples
    mean = covariance_RR.diagonal().mean()
    target_RR = mean * torch.eye(width, dtype=covariance_RR.dtype, device=covariance_RR.device)
    distance = (covariance_RR - target_RR).square().sum()
    # The variance of the entries, sum over samples of ||x x^T - S||^2 / N^2, without the products.
    fourth = centred_NR.square().sum(1).square().sum() / num_samples
    noise = (fourth - covariance_RR.square().sum()) / num_samples
    share = float((noise / distance.clamp_min(1e-300)).clamp(1e-6, 1.0))
    return (1 - share) * covariance_RR + share * target_RR


def _scored(message_NR: Tensor, held_out_BR: Tensor) -> tuple[Tensor, Tensor] | None:
    """Return z-scores of both without constant dimensions; None if all are constant."""
    if not len(message_NR) or not len(held_out_BR):
        raise ValueError("a probe needs messages to fit on and others to be scored on")
    mean_R, scale_R = message_NR.mean(0), message_NR.std(0, correction=0)
    moves_R = scale_R > 1e-6 * (1 + mean_R.abs())
    if not moves_R.any():
        return None
    fit_NR = ((message_NR - mean_R) / scale_R)[:, moves_R]
    return fit_NR, ((held_out_BR - mean_R) / scale_R)[:, moves_R]


def _commonest(label_N: Tensor, held_out_label_B: Tensor) -> float:
    """All messages are equal: the most frequent class is the best guess."""
    return float((held_out_label_B == label_N.mode().values).float().mean())


def _stopped_early(
    fit_NR: Tensor, label_N: Tensor, num_classes: int, hidden: int | None, num_steps: int
) -> nn.Module:
    width = fit_NR.shape[1]
    probe: nn.Module = nn.Linear(width, num_classes)
    if hidden is not None:
        probe = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, num_classes))
    probe = probe.to(fit_NR.device)
    order_N = torch.randperm(len(fit_NR)).to(fit_NR.device)
    num_checked = len(fit_NR) // 5
    checked, used = order_N[:num_checked], order_N[num_checked:]
    rate = 1e-2 if hidden is None else 3e-3
    optimizer = torch.optim.AdamW(probe.parameters(), rate, weight_decay=0.1)
    best, best_state, waited, step = float("inf"), None, 0, 0
    while step < num_steps and waited < _PATIENCE:
        for rows in used[torch.randperm(len(used)).to(used.device)].split(_BATCH):
            loss = F.cross_entropy(probe(fit_NR[rows]), label_N[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            step += 1
            if step % min(_CHECK_EVERY, 1 + len(used) // _BATCH) == 0 and num_checked:
                with torch.no_grad():
                    found = float(F.cross_entropy(probe(fit_NR[checked]), label_N[checked]))
                waited += 1
                if found < best:
                    best, waited = found, 0
                    best_state = {n: v.clone() for n, v in probe.state_dict().items()}
            if step >= num_steps or waited >= _PATIENCE:
                break
    if best_state is not None:
        probe.load_state_dict(best_state)
    return probe
