"""Sampled replies with a gradient: the model reads the sampled tokens as soft one-hot vectors."""

from collections.abc import Callable

import torch
from torch import Tensor

from triptych.models.commune.agent import Agent

# Shapes: B prompts, P prompt positions, M prefix tokens, T reply positions, V vocabulary, D width


def sample_soft_reply(
    agent: Agent,
    ids_BP: Tensor,
    mask_BP: Tensor,
    prefix_BMD: Tensor,
    max_new_tokens: int,
    draw: Callable[[Tensor], Tensor],
) -> tuple[Tensor, Tensor]:
    """Sample a reply token by token, differentiably.

    Every token costs a pass over all tokens before it. This is meant for the short continuations
    that adapters are trained on.

    Args:
        agent: The replying agent.
        ids_BP: Its prompts, left-padded.
        mask_BP: True for tokens.
        prefix_BMD: Prefixes of the prompts.
        max_new_tokens: T.
        draw: Maps logits (B, V) to one-hot tokens (B, V) with a gradient.

    Returns:
        Tokens and the logits that they were drawn from, both (B, T, V). Sampling does not stop at
        an end token; the caller masks the tokens after it.
    """
    embedding_VD = agent.embedding_weight
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    empty_B1D = embedding_VD.new_zeros(len(ids_BP), 1, embedding_VD.shape[1])
    read: list[Tensor] = []
    for _ in range(max_new_tokens):
        # `reply_logits` predicts the last position and never reads it.
        given_BtD = torch.cat([*read, empty_B1D], 1)
        logits_BV = agent.reply_logits(ids_BP, mask_BP, given_BtD, prefix_BMD)[:, -1]
        token_BV = draw(logits_BV)
        tokens.append(token_BV)
        logits.append(logits_BV)
        read.append((token_BV.to(embedding_VD.dtype) @ embedding_VD)[:, None])
    return torch.stack(tokens, 1), torch.stack(logits, 1)
