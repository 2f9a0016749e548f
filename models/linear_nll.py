"""The output layer fused with the negative log-likelihood of its targets, chunk by chunk."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import cross_entropy, linear
from transformers import PreTrainedModel


def linear_nll(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_tokens: int = 1024
) -> Tensor:
    """Return -log softmax(hidden_ND @ weight_VD.T)[n, targets_N[n]], in nats, differentiable.

    Logits exist for one chunk of predictions at a time and are computed again in the backward pass.
    This takes two arrays of C V numbers instead of several of N V, and a third more arithmetic in
    the output layer. Value and gradient equal those of the plain function up to the order of float
    additions. The weight's gradient is summed over chunks in at least float32. The logits are those
    of `float32_logits`, also under autocast. There is no second derivative.

    Args:
        hidden_ND: Last hidden states, after the final norm.
        weight_VD: Weight of the output layer, which has no bias.
        targets_N: int64 in [0, V).
        chunk_tokens: C, the largest number of predictions with logits in memory at once.

    Returns:
        nll_N, at least float32.

    >>> hidden, weight = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0986123]])  # ln 3
    >>> linear_nll(hidden, weight, torch.tensor([0, 1]))  # ln 2 and ln 4/3
    tensor([0.6931, 0.2877])
    """
    nll_N: Tensor = _LinearNLL.apply(  # type: ignore[no-untyped-call]
        logits_factor(hidden_ND), logits_factor(weight_VD), targets_N, chunk_tokens
    )
    return nll_N


def linear_nll_and_entropy(
    hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_tokens: int = 1024
) -> tuple[Tensor, Tensor]:
    """Return `linear_nll` and the entropy of each prediction, in nats, both differentiable.

    The entropy is that of the whole softmax over V, not an estimate from the target. Memory and
    arithmetic are those of `linear_nll`; arguments are the same.

    Returns:
        nll_N, entropy_N, at least float32.

    >>> hidden, weight = torch.tensor([[0.0], [1.0]]), torch.tensor([[0.0], [1.0986123]])  # ln 3
    >>> linear_nll_and_entropy(hidden, weight, torch.tensor([0, 1]))[1]  # ln 2; of odds 1 to 3
    tensor([0.6931, 0.5623])
    """
    nll_N, entropy_N = _LinearNLLAndEntropy.apply(  # type: ignore[no-untyped-call]
        logits_factor(hidden_ND), logits_factor(weight_VD), targets_N, chunk_tokens
    )
    return nll_N, entropy_N


def nll_and_entropy(logits_NV: Tensor, targets_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return the negative log-likelihood of targets and the entropy of each row of logits.

    Args:
        logits_NV: At least float32.
        targets_N: int64 in [0, V).

    Returns:
        nll_N, entropy_N, in nats.
    """
    log_prob_NV = logits_NV.log_softmax(-1)
    nll_N = -log_prob_NV.gather(1, targets_N[:, None])[:, 0]
    return nll_N, -(log_prob_NV.exp() * log_prob_NV).sum(-1)


def float32_logits(hidden_ND: Tensor, weight_VD: Tensor) -> Tensor:
    """Compute logits (N, V) whose sums and results are float32, also under autocast.

    Logits in bfloat16 have steps of 1/16 above 8, which is far more than a policy's step moves
    them. On CUDA the factors keep autocast's dtype, and the product is written in float32, which
    costs no speed. On other devices the factors are widened to float32. Sampling and scoring both
    take their logits from here.

    Args:
        hidden_ND: Last hidden states, after the final norm.
        weight_VD: Weight of the output layer, which has no bias.
    """
    hidden_ND, weight_VD = logits_factor(hidden_ND), logits_factor(weight_VD)
    with torch.autocast(hidden_ND.device.type, enabled=False):
        return _logits(hidden_ND, weight_VD)


def logits_factor(x: Tensor) -> Tensor:
    """Cast a factor of `float32_logits`, which repeats nothing on what was cast before.

    On CUDA autocast's dtype, elsewhere at least float32.
    """
    if x.device.type != "cuda":
        return at_least_float32(x)
    if not torch.is_autocast_enabled("cuda") or x.dtype == torch.float64:
        return x
    return x.to(torch.get_autocast_dtype("cuda"))


def at_least_float32(x: Tensor) -> Tensor:
    """Widen half precision to float32; keep float32 and float64."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


class _LinearNLL(torch.autograd.Function):
    """Output layer and cross-entropy, chunk by chunk; the backward pass recomputes the logits.

    With p = softmax(h W^T) and nll = -ln p_target, the gradient of one nll in its logits is
    p - onehot(target).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_tokens: int
    ) -> Tensor:
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N)
        ctx.chunk_tokens = chunk_tokens
        chunks = zip(hidden_ND.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            return torch.cat(
                [
                    cross_entropy(_logits(hidden_CD, weight_VD), targets_C, reduction="none")
                    for hidden_CD, targets_C in chunks
                ]
            )

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_N: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, weight_VD, targets_N = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(at_least_float32(weight_VD)) if needs_weight else None

        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(hidden_ND), ctx.chunk_tokens):
                chunk = slice(start, start + ctx.chunk_tokens)
                targets_C1, grad_C1 = targets_N[chunk, None], grad_N[chunk, None]
                grad_logits_CV = _logits(hidden_ND[chunk], weight_VD).softmax(-1)
                grad_logits_CV.mul_(grad_C1).scatter_add_(1, targets_C1, -grad_C1)
                grad_logits_CV = grad_logits_CV.to(hidden_ND.dtype)
                if grad_hidden_ND is not None:
                    torch.mm(grad_logits_CV, weight_VD, out=grad_hidden_ND[chunk])
                if grad_weight_VD is not None:
                    _add_product_(grad_weight_VD, grad_logits_CV.T, hidden_ND[chunk])

        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None


class _LinearNLLAndEntropy(torch.autograd.Function):
    """`_LinearNLL` with the entropy H as a second output.

    The gradient of H in its logits is -p (ln p + H).
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_ND: Tensor, weight_VD: Tensor, targets_N: Tensor, chunk_tokens: int
    ) -> tuple[Tensor, Tensor]:
        chunks = zip(hidden_ND.split(chunk_tokens), targets_N.split(chunk_tokens), strict=True)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            pairs = [nll_and_entropy(_logits(h_CD, weight_VD), t_C) for h_CD, t_C in chunks]
        nll_N, entropy_N = (torch.cat(parts) for parts in zip(*pairs, strict=True))
        ctx.save_for_backward(hidden_ND, weight_VD, targets_N, entropy_N)
        ctx.chunk_tokens = chunk_tokens
        return nll_N, entropy_N

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, grad_nll_N: Tensor, grad_entropy_N: Tensor
    ) -> tuple[Tensor | None, Tensor | None, None, None]:
        hidden_ND, weight_VD, targets_N, entropy_N = ctx.saved_tensors
        needs_hidden, needs_weight, *_ = ctx.needs_input_grad
        grad_hidden_ND = torch.empty_like(hidden_ND) if needs_hidden else None
        grad_weight_VD = torch.zeros_like(at_least_float32(weight_VD)) if needs_weight else None

        with torch.autocast(hidden_ND.device.type, enabled=False):
            for start in range(0, len(hidden_ND), ctx.chunk_tokens):
                chunk = slice(start, start + ctx.chunk_tokens)
                targets_C1, nll_C1 = targets_N[chunk, None], grad_nll_N[chunk, None]
                log_prob_CV = _logits(hidden_ND[chunk], weight_VD).log_softmax(-1)
                prob_CV = log_prob_CV.exp()
                log_prob_CV.add_(entropy_N[chunk, None]).mul_(-grad_entropy_N[chunk, None])
                grad_logits_CV = log_prob_CV.add_(nll_C1).mul_(prob_CV)
                grad_logits_CV.scatter_add_(1, targets_C1, -nll_C1)
                grad_logits_CV = grad_logits_CV.to(hidden_ND.dtype)
                if grad_hidden_ND is not None:
                    torch.mm(grad_logits_CV, weight_VD, out=grad_hidden_ND[chunk])
                if grad_weight_VD is not None:
                    _add_product_(grad_weight_VD, grad_logits_CV.T, hidden_ND[chunk])

        if grad_weight_VD is not None:
            grad_weight_VD = grad_weight_VD.to(weight_VD.dtype)
        return grad_hidden_ND, grad_weight_VD, None, None


def _logits(hidden_CD: Tensor, weight_VD: Tensor) -> Tensor:
    if hidden_CD.dtype == weight_VD.dtype and hidden_CD.dtype in _HALF:
        # `logits_factor` leaves half precision to CUDA alone, which has this product.
        return torch.mm(hidden_CD, weight_VD.T, out_dtype=torch.float32)
    return linear(at_least_float32(hidden_CD), at_least_float32(weight_VD))


_HALF = (torch.bfloat16, torch.float16)


def _add_product_(total_VD: Tensor, left_VC: Tensor, right_CD: Tensor) -> None:
    """Add left @ right to a total that may have a wider dtype."""
    if total_VD.dtype == left_VC.dtype:
        total_VD.addmm_(left_VC, right_CD)  # allocates no product of the total's size
    else:
        total_VD += left_VC @ right_CD


@contextmanager
def float32_output_layer(model: PreTrainedModel) -> Iterator[None]:
    """Let the model's own output layer compute in float32, also under autocast.

    For families whose logits only the model computes (`output_weight` is None): they rescale or cap
    what their output layer returns. An output layer that is not a plain `nn.Linear` stays as it is.
    """
    head: Any = model.get_output_embeddings()
    if type(head) is not nn.Linear or "forward" in vars(head):
        yield
        return

    def forward(hidden: Tensor) -> Tensor:
        bias = None if head.bias is None else at_least_float32(head.bias)
        with torch.autocast(hidden.device.type, enabled=False):
            return linear(at_least_float32(hidden), at_least_float32(head.weight), bias)

    head.forward = forward  # type: ignore[assignment]
    try:
        yield
    finally:
        del head.forward


# Settings of families that rescale their logits after the output layer (Gemma, Cohere, Granite).
_LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def output_weight(model: PreTrainedModel) -> Tensor | None:
    """Return the weight W (vocabulary, width) if logits = hidden @ W.T, otherwise None.

    The equation does not hold in families with a bias in the output layer or rescaled logits. Only
    the model itself computes their logits.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, nn.Linear) or head.bias is not None:
        return None
    if any(getattr(model.config, name, None) for name in _LOGIT_SETTINGS):
        return None
    return head.weight
