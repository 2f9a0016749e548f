"""The divergence against torch.distributions, and by hand."""

import math

import torch
from torch.distributions import Categorical, kl_divergence

from triptych.objectives.token_kl import token_kl


def test_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25]]).log() + 3.0  # unnormalised
    q = torch.tensor([[0.25, 0.25, 0.5]]).log() - 1.0
    expected = 0.5 * math.log(2) + 0.25 * math.log(0.5)
    torch.testing.assert_close(token_kl(p, q), torch.tensor([expected]))


def test_equals_torch_distributions_with_gradients():
    p, q = (torch.randn(7, 11, dtype=torch.float64, requires_grad=True) for _ in range(2))
    ours = token_kl(p, q)
    theirs = kl_divergence(Categorical(logits=p), Categorical(logits=q))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)
    for pair in zip(
        torch.autograd.grad(ours.sum(), (p, q)),
        torch.autograd.grad(theirs.sum(), (p, q)),
        strict=True,
    ):
        torch.testing.assert_close(*pair, rtol=1e-10, atol=1e-13)


def test_half_precision_is_computed_in_float32():
    p, q = (torch.randn(2, 5).bfloat16() for _ in range(2))
    kl = token_kl(p, q)
    assert kl.dtype == torch.float32
    torch.testing.assert_close(kl, token_kl(p.float(), q.float()), rtol=0, atol=0)
