"""Language models and a tokenizer small enough to enumerate their completions."""

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm

WORDS = ["<pad>", "<end>", *"abcdefghijklmnopq"]
PAD, END = 0, 1
VOCABULARY = len(WORDS)  # 19
KINDS = ["llama", "qwen2", "gpt2", "memory"]


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer with one token per word."""
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, "<pad>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<end>")


def tiny_model(kind: str, vocab_size: int = VOCABULARY, seed: int = 0) -> PreTrainedModel:
    """A model of a family, or a Llama with memory; wide logits, so that samples differ."""
    torch.manual_seed(seed)
    family = "llama" if kind == "memory" else kind
    base = BaseLMConfig(
        family=family,
        hidden_size=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=None if family == "gpt2" else 2,
        max_position_embeddings=48,
        overrides={"initializer_range": 0.3},
    )
    memory = MemoryConfig(layers=[1], num_keys=8, num_heads=2, top_k=4, qk_norm=True)
    return build_memory_lm(base, memory if kind == "memory" else None, vocab_size)


def prompt(ids: list[int]) -> dict[str, object]:
    """A row of data."""
    return {"prompt_ids": ids, "prompt": " ".join(WORDS[i] for i in ids), "answer": len(ids)}
