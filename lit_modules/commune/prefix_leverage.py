"""How much a vector in each place of the prompt changes an agent's reply, before any training.

A prefix of random vectors, as long as the mean token embedding, is put in each place. The leverage
is the mean KL divergence of the next-token distributions of a fixed reply, without and with it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from triptych.lit_modules.commune.debate import end_mask
from triptych.models.commune.agent import Agent
from triptych.models.commune.prefix_place import PLACES, Place
from triptych.objectives.token_kl import token_kl

# Shapes: B prompts, T reply positions, V vocabulary, M prefix tokens, D width


@torch.no_grad()
def prefix_leverage(
    agent: Agent,
    prompts: Sequence[Sequence[int]],
    replies_BT: Tensor,
    num_tokens: int = 1,
    seed: int = 0,
) -> dict[Place, float]:
    """Measure the leverage of the places that the agent's prompts have.

    Args:
        agent: The agent; its own place is left as it is.
        prompts: Token ids of its prompts.
        replies_BT: Its replies to them, padded after the end.
        num_tokens: M, the length of the prefix.
        seed: Seed of the random vectors.

    Returns:
        Nats per token, by place.
    """
    generator = torch.Generator().manual_seed(seed)
    noise_BMD = torch.randn(len(prompts), num_tokens, agent.width, generator=generator)
    device = agent.embedding_weight.device
    prefix_BMD = agent.embedding_rms * F.rms_norm(noise_BMD, noise_BMD.shape[-1:]).to(device)
    ids, mask = agent.pad(prompts)
    kept_BT = end_mask(replies_BT, agent)
    alone_BTV = agent.reply_logits(ids, mask, replies_BT)
    own, found = agent.place, {}
    places = PLACES if agent.tokenizer.chat_template is not None else PLACES[2:]
    try:
        for place in places:
            agent.place = place
            told_BTV = agent.reply_logits(ids, mask, replies_BT, prefix_BMD)
            found[place] = float(token_kl(alone_BTV, told_BTV)[kept_BT].mean())
    finally:
        agent.place = own
    return found


def leverage_rows(found: dict[Place, float], used: Place) -> list[tuple[str, str]]:
    """Return rows for the summary table.

    >>> leverage_rows({"user_text": 0.196, "before_prompt": 0.023}, "user_text")
    [('a random vector, user text', '0.1960 nats a token   in use'),
     ('a random vector, before prompt', '0.0230 nats a token')]
    """
    return [
        (
            f"a random vector, {place.replace('_', ' ')}",
            f"{value:.4f} nats a token" + ("   in use" if place == used else ""),
        )
        for place, value in found.items()
    ]
