"""Importance weights for samples whose probability was computed in two ways."""

# Shapes: B completions, T completion positions

import torch
from torch import Tensor


def importance_weight(
    gap_BT: Tensor | None, threshold: float | None, cap: float = 2.0
) -> Tensor | None:
    """Compute min(exp(sum of the gap over tokens), cap) for each completion, (B,).

    In half precision, tokens are sampled from slightly other probabilities than scoring computes.
    The weight p(scored) / p(sampled) of the whole completion makes the expectation of a loss again
    that under the scored policy. The objectives here are expectations over completions, so their
    weight is the product over tokens; one weight for each token would leave a bias in every token
    that depends on earlier ones. The cap bounds the variance, as in TRL and verl (truncated
    importance sampling, 1.0 to 2.0 is common).

    Args:
        gap_BT: Scored minus sampled log-probability, in nats, 0 where nothing was sampled; None
            if unknown.
        threshold: The weight is exactly 1 unless a token's gap exceeds this; None: no weights.
        cap: Largest weight.

    Returns:
        Weights without gradient; None without a gap or threshold.

    >>> importance_weight(torch.tensor([[0.25, -0.05], [1e-5, 0.0], [3.0, 0.0]]), 1e-3)
    tensor([1.2214, 1.0000, 2.0000])
    """
    if gap_BT is None or threshold is None:
        return None
    gap_BT = gap_BT.detach()
    weight_B = gap_BT.sum(-1).exp().clamp_max(cap)
    return torch.where((gap_BT.abs() > threshold).any(-1), weight_B, 1.0)
