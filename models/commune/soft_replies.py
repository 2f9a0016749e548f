"""Replies that are sampled and keep a gradient: tokens are read again as they were drawn."""

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

    Every token costs a pass over all before it: meant for the brief continuations that adapters
    learn from.

    Args:
        agent: Who replies.
        ids_BP: Its prompts, left-padded.
        mask_BP: True for tokens.
        prefix_BMD: Before the prompts.
        max_new_tokens: T.
        draw: Maps logits (B, V) to one-hot tokens (B, V) with a gradient.

    Returns:
        Tokens and the logits that they were drawn from, both (B, T, V). Nothing stops at an end
        token; what follows it is for the caller to mask.
    """
    embedding_VD = agent.embedding_weight
    tokens: list[Tensor] = []
    logits: list[Tensor] = []
    empty_B1D = embedding_VD.new_zeros(len(ids_BP), 1, embedding_VD.shape[1])
    read: list[Tensor] = []
    for _ in range(max_new_tokens):
        # The last position of what is given is only asked for, never read.
        given_BtD = torch.cat([*read, empty_B1D], 1)
        logits_BV = agent.reply_logits(ids_BP, mask_BP, given_BtD, prefix_BMD)[:, -1]
        token_BV = draw(logits_BV)
        tokens.append(token_BV)
        logits.append(logits_BV)
        read.append((token_BV.to(embedding_VD.dtype) @ embedding_VD)[:, None])
    return torch.stack(tokens, 1), torch.stack(logits, 1)
