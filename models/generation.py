"""Greedy continuation of a batch of prompts, as text."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def continue_greedily(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    max_new_tokens: int,
    also_ends: Sequence[int] = (),
) -> list[str]:
    """Continue left-padded prompts greedily and return only the continuations.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with EOS and padding.
        prompt_ids: int64 (B, P), left-padded.
        prompt_mask: int64 (B, P), 1 for tokens and 0 for padding.
        max_new_tokens: Longest continuation, in tokens.
        also_ends: Further tokens that end a continuation, such as the end of a turn.
    """
    generator: Any = model
    ids = generator.generate(
        prompt_ids,
        attention_mask=prompt_mask,
        max_new_tokens=max_new_tokens,
        do_sample=False,
        eos_token_id=list(dict.fromkeys([tokenizer.eos_token_id, *also_ends])),
        pad_token_id=tokenizer.pad_token_id,
    )
    texts: list[str] = tokenizer.batch_decode(
        ids[:, prompt_ids.shape[1] :], skip_special_tokens=True
    )
    return texts
