"""The loss of an adapter: replies should have the meaning of the reference, and be fluent.

    L = semantic_weight (1 - cos(mean embedding of y, mean embedding of y_ref))
      + fluency_weight  (- log p(y | context, prefix), mean over tokens)

Paper: ThoughtComm, 2510.20733: the sum over agents and rounds of both terms, weights of 1. It does
not state how a gradient reaches the prefix through a generated y. Sampled or argmax ids are
integers, and the embedding of an integer does not depend on its logits. Used directly, they leave
the semantic term without any gradient, and the fluency term only makes the model more certain of
its own replies. Three solutions:

    teacher_forced     y is the reference itself; its mean embedding is that of the model's
                       distributions, softmax(logits / temperature) E. Cheap, no variance; the
                       default.
    straight_through   y is sampled, one-hot forward, with the derivative of a Gumbel softmax
                       backward (biased, low variance).
    reinforce          y is sampled, and the cosine is a reward: - (r - baseline) log p(y)
                       (unbiased, high variance).

Deviation of `teacher_forced`: log p is that of the reference, so that the prefix learns the reply.
With the other two it is that of y, as in the paper. Losses are computed in float32.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

# Shapes: B batch, T reply positions, V vocabulary, D embedding width

Gradient = Literal["teacher_forced", "straight_through", "reinforce"]


@dataclass(frozen=True)
class ThoughtLossConfig:
    """Weights of the terms, and the kind of gradient.

    Args:
        gradient: See the docstring of this module.
        semantic_weight: Weight of 1 - cos.
        fluency_weight: Weight of the mean negative log-likelihood of a token.
        temperature: Temperature of the soft embeddings of `teacher_forced`, and of the Gumbel
            softmax.

    Raises:
        ValueError: on numbers out of range, or if both weights are 0.
    """

    gradient: Gradient = "teacher_forced"
    semantic_weight: float = 1.0
    fluency_weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if min(self.semantic_weight, self.fluency_weight) < 0 or not (
            self.semantic_weight + self.fluency_weight
        ):
            raise ValueError(
                f"loss.semantic_weight is {self.semantic_weight} and loss.fluency_weight "
                f"{self.fluency_weight}: set both to at least 0, and one above"
            )
        if self.temperature <= 0:
            raise ValueError(f"loss.temperature is {self.temperature}: set it above 0")


@dataclass(frozen=True)
class ThoughtTerms:
    """The two terms, each a mean over the batch.

    Attributes:
        semantic: 1 - cos, from 0 to 2.
        fluency: Nats per token.
        loss: The loss to minimise.
    """

    semantic: Tensor
    fluency: Tensor
    loss: Tensor


def mean_embedding(embeddings_BTD: Tensor, mask_BT: Tensor) -> Tensor:
    """Average over the tokens where the mask is True, float32 (B, D)."""
    weight_BT1 = mask_BT[:, :, None].float()
    total_BD = (embeddings_BTD.float() * weight_BT1).sum(1)
    return total_BD / weight_BT1.sum(1).clamp_min(1)


def semantic_distance(one_BD: Tensor, other_BD: Tensor) -> Tensor:
    """Compute 1 - cos, (B,).

    >>> semantic_distance(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]]))
    tensor([1.])
    """
    return 1 - F.cosine_similarity(one_BD.float(), other_BD.float(), dim=1)


def token_nll(logits_BTV: Tensor, ids_BT: Tensor) -> Tensor:
    """Compute the negative log-likelihood of every token in nats, float32 (B, T)."""
    return F.cross_entropy(logits_BTV.float().mT, ids_BT, reduction="none")


def straight_through_tokens(
    logits_BV: Tensor, temperature: float, generator: torch.Generator | None = None
) -> Tensor:
    """Sample one-hot tokens (B, V) whose gradient is that of a Gumbel softmax."""
    uniform_BV = torch.rand(
        logits_BV.shape, generator=generator, device=logits_BV.device, dtype=torch.float32
    ).clamp(1e-20, 1 - 1e-7)
    noisy_BV = logits_BV.float() - (-uniform_BV.log()).log()
    soft_BV = (noisy_BV / temperature).softmax(-1)
    hard_BV = torch.zeros_like(soft_BV).scatter_(1, noisy_BV.argmax(1, keepdim=True), 1.0)
    return hard_BV + soft_BV - soft_BV.detach()


def teacher_forced_terms(
    logits_BTV: Tensor,
    reference_BT: Tensor,
    mask_BT: Tensor,
    embedding_VD: Tensor,
    config: ThoughtLossConfig,
) -> ThoughtTerms:
    """Compute both terms of the reference from the logits that predict its tokens.

    Args:
        logits_BTV: Logits given prompt, prefix and the preceding tokens.
        reference_BT: int64, y_ref.
        mask_BT: True for its tokens.
        embedding_VD: The model's token embeddings.
        config: Weights.
    """
    soft_BTV = (logits_BTV.float() / config.temperature).softmax(-1)
    said_BD = mean_embedding(soft_BTV.to(embedding_VD.dtype) @ embedding_VD, mask_BT)
    meant_BD = mean_embedding(F.embedding(reference_BT, embedding_VD), mask_BT)
    return _weighed(
        semantic_distance(said_BD, meant_BD).mean(),
        _mean_nll(logits_BTV, reference_BT, mask_BT),
        config,
    )


def straight_through_terms(
    tokens_BTV: Tensor,
    logits_BTV: Tensor,
    mask_BT: Tensor,
    meant_BD: Tensor,
    embedding_VD: Tensor,
    config: ThoughtLossConfig,
) -> ThoughtTerms:
    """Compute both terms of a reply sampled by `straight_through_tokens`.

    Args:
        tokens_BTV: One-hot tokens of the reply.
        logits_BTV: Logits from which they were drawn.
        mask_BT: True up to the end token.
        meant_BD: `mean_embedding` of the reference.
        embedding_VD: The model's token embeddings.
        config: Weights.
    """
    said_BD = mean_embedding(tokens_BTV.to(embedding_VD.dtype) @ embedding_VD, mask_BT)
    return _weighed(
        semantic_distance(said_BD, meant_BD).mean(),
        _mean_nll(logits_BTV, tokens_BTV.detach().argmax(-1), mask_BT),
        config,
    )


def reinforce_terms(
    logits_BTV: Tensor,
    sampled_BT: Tensor,
    mask_BT: Tensor,
    meant_BD: Tensor,
    embedding_VD: Tensor,
    config: ThoughtLossConfig,
) -> ThoughtTerms:
    """Compute both terms of a sampled reply; the baseline is the mean of the other replies.

    `semantic` is the mean distance itself. `loss` contains a surrogate that has the gradient of its
    expectation.

    Args:
        logits_BTV: Logits given prompt, prefix and the preceding tokens, differentiable.
        sampled_BT: int64, the reply.
        mask_BT: True up to the end token.
        meant_BD: `mean_embedding` of the reference.
        embedding_VD: The model's token embeddings.
        config: Weights.

    Raises:
        ValueError: with fewer than two replies.
    """
    if len(sampled_BT) < 2:
        raise ValueError(
            "loss.gradient: reinforce takes the batch's other replies for a baseline: set "
            "data.init_args.batch_size to at least 2"
        )
    with torch.no_grad():
        said_BD = mean_embedding(F.embedding(sampled_BT, embedding_VD), mask_BT)
        distance_B = semantic_distance(said_BD, meant_BD)
        others_B = (distance_B.sum() - distance_B) / (len(distance_B) - 1)
    nll_BT = token_nll(logits_BTV, sampled_BT) * mask_BT
    surrogate = ((distance_B - others_B) * -nll_BT.sum(1)).mean()
    fluency = nll_BT.sum() / mask_BT.sum().clamp_min(1)
    loss = config.semantic_weight * surrogate + config.fluency_weight * fluency
    return ThoughtTerms(distance_B.mean(), fluency, loss)


def _mean_nll(logits_BTV: Tensor, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    return (token_nll(logits_BTV, ids_BT) * mask_BT).sum() / mask_BT.sum().clamp_min(1)


def _weighed(semantic: Tensor, fluency: Tensor, config: ThoughtLossConfig) -> ThoughtTerms:
    loss = config.semantic_weight * semantic + config.fluency_weight * fluency
    return ThoughtTerms(semantic, fluency, loss)
