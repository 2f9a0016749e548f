"""The KL divergence of two language models' next-token distributions."""

# Shapes: N positions, V vocabulary

import torch
from torch import Tensor


def token_kl(logits_NV: Tensor, other_logits_NV: Tensor) -> Tensor:
    """Compute KL(p || q) = sum_v p_v (ln p_v - ln q_v) at every position, exactly.

    Args:
        logits_NV: Of p, unnormalised.
        other_logits_NV: Of q.

    Returns:
        kl_N in nats, at least float32, differentiable in both.

    >>> p, q = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    >>> token_kl(p, q)  # ln 2 / 2 + ln(2/3) / 2
    tensor([0.1438])
    """
    exact = torch.promote_types(logits_NV.dtype, torch.float32)
    log_p_NV = logits_NV.to(exact).log_softmax(-1)
    log_q_NV = other_logits_NV.to(exact).log_softmax(-1)
    return (log_p_NV.exp() * (log_p_NV - log_q_NV)).sum(-1)
