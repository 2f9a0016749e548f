"""Tiny agents of three families, and their models."""

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import PreTrainedTokenizerFast

from triptych.models.base_lm import BaseLMConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents


def word_tokenizer():
    words = {word: number for number, word in enumerate(["<pad>", "<eos>", *"abcdefgh"])}
    tokenizer = Tokenizer(WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", padding_side="left"
    )


def base(family="llama", width=16, layers=3):
    return BaseLMConfig(family=family, hidden_size=width, num_layers=layers, num_heads=2)


def tiny_agents() -> Agents:
    torch.manual_seed(0)
    bases = [base(), base("gpt2", width=24), base("qwen3")]
    agents = build_agents(AgentsConfig(bases), 10)
    agents.give_tokenizer(word_tokenizer())
    return agents
