"""Leakage of a message: the held-out accuracy of a classifier trained on it."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# Shapes: N samples to fit on, B held-out samples, R numbers of a message


def probe_accuracy(
    message_NR: Tensor,
    label_N: Tensor,
    held_out_BR: Tensor,
    held_out_label_B: Tensor,
    num_classes: int,
    hidden: int | None = None,
    num_steps: int = 200,
    seed: int = 0,
) -> float:
    """Fit a probe and return its accuracy on held-out samples.

    Messages are z-scored by the training samples, without their constant dimensions. Adam takes all
    samples at once, with weight decay.

    Args:
        message_NR: Messages to fit on.
        label_N: int64; the class that should not be predictable from a message.
        held_out_BR: Messages to score on.
        held_out_label_B: Their classes.
        num_classes: Number of classes; chance is 1 / num_classes if they are equally frequent.
        hidden: Units of a hidden layer; None: a linear probe.
        num_steps: Steps of Adam.
        seed: Seed of the weights.

    Raises:
        ValueError: if there are no messages to fit or to score on.
    """
    if not len(message_NR) or not len(held_out_BR):
        raise ValueError("a probe needs messages to fit on and others to be scored on")
    mean_R, scale_R = message_NR.mean(0), message_NR.std(0, correction=0)
    moves_R = scale_R > 1e-6 * (1 + mean_R.abs())
    if not moves_R.any():  # all messages are equal: the most frequent class is the best guess
        return float((held_out_label_B == label_N.mode().values).float().mean())
    fit_NR = ((message_NR - mean_R) / scale_R)[:, moves_R]
    score_BR = ((held_out_BR - mean_R) / scale_R)[:, moves_R]
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(seed)
        width = fit_NR.shape[1]
        probe: nn.Module = nn.Linear(width, num_classes)
        if hidden is not None:
            probe = nn.Sequential(
                nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, num_classes)
            )
        probe = probe.to(fit_NR.device)
        optimizer = torch.optim.AdamW(probe.parameters(), 0.02, weight_decay=1e-2)
        for _ in range(num_steps):
            loss = F.cross_entropy(probe(fit_NR), label_N)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    with torch.no_grad():
        return float((probe(score_BR).argmax(1) == held_out_label_B).float().mean())
