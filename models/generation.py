"""Continuations of prompts by `generate`, from the model's own distribution."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from triptych.models.end_tokens import end_tokens


@torch.no_grad()
def generate_plainly(
    model: PreTrainedModel,
    *,
    ends: Sequence[int],
    pad_id: int,
    max_new_tokens: int,
    temperature: float = 0.0,
    num_return_sequences: int = 1,
    **inputs: Any,
) -> Tensor:
    """Continue prompts by `generate`, without the options of the model's `generation_config.json`.

    transformers fills in what a call leaves open from that file: repetition penalties, `min_p`,
    `top_k`, suppressed tokens. The continuations would then not be those of the model's
    distribution.

    Args:
        model: A causal language model.
        ends: Tokens that end a continuation.
        pad_id: Token after the end of a continuation.
        max_new_tokens: Longest continuation, end token included.
        temperature: Sampling temperature; 0: the likeliest token each time.
        num_return_sequences: Continuations of each prompt.
        **inputs: Left-padded `input_ids` or `inputs_embeds`, `attention_mask`, `streamer`.

    Returns:
        What `generate` returns: int64 (B, P + T), or (B, T) for `inputs_embeds`.
    """
    sampling: dict[str, Any] = {"temperature": temperature, "top_k": 0, "top_p": 1.0}
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        eos_token_id=list(ends),
        pad_token_id=pad_id,
        num_return_sequences=num_return_sequences,
        do_sample=temperature > 0,
        **(sampling if temperature > 0 else {}),
    )
    generator: Any = model
    own = generator.generation_config
    generator.generation_config = GenerationConfig()
    try:
        ids: Tensor = generator.generate(generation_config=settings, **inputs)
    finally:
        generator.generation_config = own
    return ids


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
        also_ends: Further tokens that end a continuation, besides those of model and tokenizer.
    """
    pad: Any = tokenizer.pad_token_id
    ids = generate_plainly(
        model,
        ends=list(dict.fromkeys([*end_tokens(model, tokenizer), *also_ends])),
        pad_id=pad,
        max_new_tokens=max_new_tokens,
        input_ids=prompt_ids,
        attention_mask=prompt_mask,
    )
    texts: list[str] = tokenizer.batch_decode(
        ids[:, prompt_ids.shape[1] :], skip_special_tokens=True
    )
    return texts
