"""A folder as chat models have it: SmolLM2's real tokenizer, a tiny random model, own settings."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

#: Of SmolLM2's tokenizer.
TEXT_END, TURN_START, TURN_END = 0, 1, 2


def chat_tokenizer(smollm2: str, **settings: Any) -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(smollm2, **settings)


def tiny_chat_folder(
    folder: Path,
    smollm2: str,
    tokenizer: dict[str, Any] | None = None,
    width: int = 16,
    max_positions: int = 128,
    **generation: Any,
) -> str:
    """Write the folder and return its name.

    Args:
        folder: The folder.
        smollm2: Where the tokenizer comes from.
        tokenizer: Settings of the tokenizer, such as `eos_token`.
        width: Of the hidden states.
        max_positions: Longest text in tokens.
        generation: What its `generation_config.json` holds.
    """
    own = chat_tokenizer(smollm2, **(tokenizer or {}))
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(own),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=max_positions,
        tie_word_embeddings=True,
        initializer_range=0.3,
        bos_token_id=own.bos_token_id,
        eos_token_id=own.eos_token_id,
        pad_token_id=own.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    own.save_pretrained(folder)
    if generation:
        GenerationConfig(**generation).save_pretrained(folder)
    return str(folder)
