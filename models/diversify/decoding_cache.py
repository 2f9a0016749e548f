"""A cache for keys and values in memory that is allocated once."""

from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache, PretrainedConfig
from transformers.cache_utils import DynamicLayer

# Shapes: B rows, H heads, T tokens, D head width, C capacity in tokens


class ReservedLayer(DynamicLayer):
    """A cache layer that copies only the new token at each step.

    Attention gets a view of the tokens so far, in memory for `capacity` tokens. The layer of
    transformers concatenates, which copies all tokens at every step. Under autocast keys and values
    have its dtype, as attention would cast them, so no step casts all keys again.

    Args:
        capacity: C, the largest number of tokens of a row.
    """

    def __init__(self, capacity: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.capacity = capacity
        self._length = 0
        self._place_1: Tensor | None = None
        self._keys_BHCD = self._values_BHCD = torch.empty(0)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Allocate memory for the first rows."""
        self.dtype, self.device = _attention_dtype(key_states), key_states.device
        self._keys_BHCD = self._room(key_states.to(self.dtype))
        self._values_BHCD = self._room(value_states.to(_attention_dtype(value_states)))
        self.is_initialized = True

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Add tokens (B, H, T, D); returns all tokens so far."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        if self._place_1 is not None:
            self._keys_BHCD.index_copy_(2, self._place_1, key_states.to(self._keys_BHCD.dtype))
            self._values_BHCD.index_copy_(
                2, self._place_1, value_states.to(self._values_BHCD.dtype)
            )
            return self._keys_BHCD, self._values_BHCD
        begin, end = self._length, self._length + key_states.shape[2]
        assert end <= self.capacity, f"{end} tokens in a cache for {self.capacity}"
        self._keys_BHCD[:, :, begin:end] = key_states
        self._values_BHCD[:, :, begin:end] = value_states
        self._length = end
        return self._keys_BHCD[:, :, :end], self._values_BHCD[:, :, :end]

    def write_at(self, place_1: Tensor) -> None:
        """Write further tokens at this position (int64, one element), which the caller advances.

        Attention then gets all C tokens, and its mask has to hide those that are not written.
        """
        for states_BHCD in (self._keys_BHCD, self._values_BHCD):
            states_BHCD[:, :, self._length :] = 0  # a hidden nan would still spread
        self._place_1, self._length = place_1, self.capacity

    def get_seq_length(self) -> int:
        """Return the number of tokens so far."""
        return self._length

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat every row, with the copies next to each other."""
        rows = torch.arange(len(self._keys_BHCD), device=self.device)
        self.batch_select_indices(rows.repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep the given rows, which may repeat."""
        self._keys_BHCD = self._copy(self._keys_BHCD, indices)
        self._values_BHCD = self._copy(self._values_BHCD, indices)

    def _copy(self, states_BHCD: Tensor, rows: Tensor) -> Tensor:
        made = self._room(states_BHCD, len(rows))
        written = states_BHCD[:, :, : self._length]
        torch.index_select(written, 0, rows, out=made[:, :, : self._length])
        return made

    def _room(self, states_BHTD: Tensor, num_rows: int | None = None) -> Tensor:
        own, heads, _, width = states_BHTD.shape
        return states_BHTD.new_empty(num_rows or own, heads, self.capacity, width)


def decoding_cache(config: PretrainedConfig, capacity: int) -> Cache:
    """Build an empty cache for rows of at most `capacity` tokens.

    Families with windowed or recurrent layers get the cache of transformers.
    """
    if not attends_to_everything(config):
        return DynamicCache(config=config)
    return Cache(layers=[ReservedLayer(capacity) for _ in range(config.num_hidden_layers)])


def _attention_dtype(states: Tensor) -> torch.dtype:
    """Return the dtype in which attention reads these states."""
    device_type = states.device.type
    if states.dtype == torch.float32 and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return states.dtype


def attends_to_everything(config: PretrainedConfig) -> bool:
    """Return whether every layer attends to all previous tokens."""
    kinds = getattr(config, "layer_types", None)
    if kinds is not None:
        return all(kind == "full_attention" for kind in kinds)
    return getattr(config, "sliding_window", None) is None
