"""All options of the memory in a language model."""

import json
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import torch

from triptych.short_names import full_class_path

PRODUCT_KEYS = "triptych.models.remember.index.product_keys.ProductKeyIndex"


@dataclass
class MemoryConfig:
    """Places and structure of the memory layers in a causal language model.

    Args:
        layers: Decoder blocks with a memory at their FFN, counted from 0. The paper uses block 12
            of 22 for sparse memory finetuning; Memory+ uses three, centred.
        num_keys: N, half keys of each head; the table has N squared slots.
        num_heads: H, queries per token.
        top_k: K, slots read per query.
        key_dim: D, width of one head's query; None means half the hidden size (Memory+).
        value_dim: Width of a value, any number; None means the hidden size.
        placement: `replace` puts the memory in the FFN's place, as in the papers, for pretraining
            from scratch. `beside` adds it to the FFN's output behind a scalar gate, so that the
            logits of a pretrained model are the same to the bit after insertion.
        start: With `placement: beside`, what keeps the logits the same. `closed_gate`: random
            values behind a gate at zero, which healing opens. `zero_values`: zeros behind a gate
            at one, so that values have a gradient and learn without healing. Null: `zero_values`
            in a model that is loaded by `base.pretrained`, else `closed_gate`, as in models saved
            before this option existed.
        share_values: One value table for all layers (Memory+), or one table per layer.
        gated: The papers' swilu: out = W2(y * silu(W1 x)).
        qk_norm: Normalise queries and keys. Without it small models collapse onto few slots.
        value_dtype: Precision of the table; None follows the model.
        value_gradient: `dense`, or `selected_rows` for a compact gradient (see `ValueTable`).
        index: Class path of the `SlotIndex`. A saved model whose index is not part of Triptych is
            loaded only if its module is trusted (see `load_memory_lm`).
        index_args: Settings of that index, by the names in its constructor; plain values. For
            `FaissSlotIndex` those of `FaissOptions`.
        faiss: Former name of `index_args`, for `FaissSlotIndex` alone; moved there.
        relevance_gate: With `placement: beside`, a second gate computed from each token; see
            `FFNWithMemory`.
        dense_twin: Build no memory, but give the same blocks an FFN with as many multiply-adds per
            token: the baseline for a memory model.

    Raises:
        ValueError: on settings that cannot work; the message says what to change.
    """

    layers: list[int] = field(default_factory=lambda: [1])
    num_keys: int = 128
    num_heads: int = 4
    top_k: int = 32
    key_dim: int | None = None
    value_dim: int | None = None
    placement: Literal["replace", "beside"] = "replace"
    start: Literal["zero_values", "closed_gate"] | None = None
    share_values: bool = True
    gated: bool = True
    qk_norm: bool = False
    value_dtype: Literal["float32", "bfloat16"] | None = None
    value_gradient: Literal["dense", "selected_rows"] = "dense"
    index: str = PRODUCT_KEYS
    index_args: dict[str, Any] = field(default_factory=dict)
    faiss: dict[str, Any] | None = None
    relevance_gate: bool = False
    dense_twin: bool = False

    def __post_init__(self) -> None:
        if not self.layers:
            raise ValueError("memory.layers is empty: name at least one block, e.g. layers: [1]")
        if len(set(self.layers)) != len(self.layers):
            raise ValueError(f"memory.layers names a block twice: {self.layers}")
        for name in ("num_keys", "num_heads", "top_k"):
            if getattr(self, name) < 1:
                raise ValueError(f"memory.{name} must be at least 1, got {getattr(self, name)}")
        for name in ("key_dim", "value_dim"):
            size = getattr(self, name)
            if size is not None and size < 1:
                raise ValueError(f"memory.{name} must be at least 1, got {size}")
        if self.top_k > self.num_keys:
            raise ValueError(
                f"memory.top_k={self.top_k} is larger than memory.num_keys={self.num_keys}: the "
                f"best slots could not be found among the half keys. Lower top_k or raise num_keys."
            )
        if self.key_dim is not None and self.key_dim % 2:
            raise ValueError(
                f"memory.key_dim={self.key_dim} must be even: a query is split in two halves"
            )
        self.index = full_class_path(self.index)
        if self.faiss is not None:
            self._take_faiss(self.faiss)
        self.index_args = _plain(self.index_args)
        if self.relevance_gate and self.placement != "beside":
            raise ValueError(
                "memory.relevance_gate weighs a memory beside an FFN: set memory.placement to "
                "beside, or leave it out"
            )
        if self.start is not None and self.placement != "beside":
            raise ValueError(
                f"memory.start={self.start} is about a memory beside an FFN: set memory.placement "
                "to beside, or leave memory.start out"
            )

    def _take_faiss(self, faiss: Any) -> None:
        if self.index == PRODUCT_KEYS:
            raise ValueError(
                "memory.faiss is set, but memory.index is product keys: set memory.index to "
                "triptych.models.remember.index.faiss_index.FaissSlotIndex, or leave memory.faiss "
                "out"
            )
        if self.index_args:
            raise ValueError("memory.faiss and memory.index_args are the same: set index_args only")
        self.index_args = faiss if isinstance(faiss, dict) else asdict(faiss)
        self.faiss = None

    @property
    def num_slots(self) -> int:
        """Number of slots of one table."""
        return self.num_keys**2

    def resolved(self, hidden_size: int, num_blocks: int) -> "MemoryConfig":
        """Fill in the sizes that depend on the base model, and check all sizes against it.

        Raises:
            ValueError: if a block does not exist or the key width is odd.
        """
        outside = [layer for layer in self.layers if not 0 <= layer < num_blocks]
        if outside:
            raise ValueError(
                f"memory.layers {outside} do not exist: the model has blocks 0 to {num_blocks - 1}"
            )
        settings = asdict(self)
        settings["key_dim"] = self.key_dim or hidden_size // 2
        settings["value_dim"] = self.value_dim or hidden_size
        if settings["key_dim"] % 2:
            raise ValueError(
                f"memory.key_dim would be {settings['key_dim']} (half of hidden_size="
                f"{hidden_size}), which is odd; set memory.key_dim to an even number"
            )
        return MemoryConfig(**settings)

    def sizes(self) -> tuple[int, int]:
        """Return the resolved (key_dim, value_dim)."""
        assert self.key_dim is not None, "call resolved() first"
        assert self.value_dim is not None, "call resolved() first"
        return self.key_dim, self.value_dim

    def dtype(self) -> torch.dtype | None:
        """Return the table's torch dtype; None: the model's."""
        return None if self.value_dtype is None else getattr(torch, self.value_dtype)

    def multiply_adds(self, hidden_size: int) -> int:
        """Count the multiply-adds of one resolved memory layer in a token's forward pass.

        They are those of query projection, half scores, weighted gather, gate and output
        projection. The top-k multiplies nothing.
        """
        key_dim, value_dim = self.sizes()
        query = hidden_size * self.num_heads * key_dim
        scores = self.num_heads * self.num_keys * key_dim
        gather = self.num_heads * self.top_k * value_dim
        has_output = self.gated or value_dim != hidden_size
        output = hidden_size * value_dim * (int(self.gated) + int(has_output))
        return query + scores + gather + output + hidden_size * int(self.relevance_gate)

    def to_dict(self) -> dict[str, Any]:
        """Return the settings in plain types, as stored in a model's config.json."""
        return asdict(self)


def _plain(settings: dict[str, Any]) -> dict[str, Any]:
    """Convert settings to the values that config.json gives back, such as lists for tuples."""
    try:
        plain: dict[str, Any] = json.loads(json.dumps(settings))
    except TypeError as error:
        raise ValueError(
            f"memory.index_args must be numbers, words, lists and mappings, which a config.json "
            f"can hold: {error}"
        ) from error
    return plain
