"""Keys and values of prompts, read by several completions of each."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

# Shapes: G prompts, R rows, H heads, P prompt positions, S positions of a row, D head width


class PromptLayer(DynamicLayer):
    """A cache layer that keeps the keys and values of one pass over prompts as they are."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Keep and return keys and values of all prompts, (G, H, P, D)."""
        assert not self.is_initialized, "prompts are read in one pass"
        self.keys, self.values = key_states, value_states
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True
        return key_states, value_states


class SharedPromptLayer(DynamicLayer):
    """A cache layer that puts each row's prompt before its tokens, and keeps nothing.

    The gradients of a prompt's rows add up in the prompt. Since nothing is kept, a decoder block
    may run twice, as gradient checkpointing does.

    Args:
        keys_GHPD: Keys of the prompts.
        values_GHPD: Their values.
        prompt_R: int64; the prompt of each row.
    """

    def __init__(self, keys_GHPD: Tensor, values_GHPD: Tensor, prompt_R: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.keys, self.values, self.prompt_R = keys_GHPD, values_GHPD, prompt_R
        self.dtype, self.device = keys_GHPD.dtype, keys_GHPD.device
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Return the keys and values of each row's prompt and of the row: (R, H, P + S, D)."""
        assert self.keys is not None
        assert self.values is not None
        keys = torch.cat([self.keys.index_select(0, self.prompt_R), key_states], 2)
        values = torch.cat([self.values.index_select(0, self.prompt_R), value_states], 2)
        return keys, values


def prompt_cache(config: PretrainedConfig) -> Cache:
    """Build an empty cache for one pass over prompts."""
    return Cache(layers=[PromptLayer() for _ in range(config.num_hidden_layers)])


def shared_prompts(cache: Cache, prompt_R: Tensor) -> Cache:
    """Let rows continue the prompts that a pass has read into `cache`."""
    layers: list[Any] = cache.layers
    return Cache(layers=[SharedPromptLayer(layer.keys, layer.values, prompt_R) for layer in layers])
