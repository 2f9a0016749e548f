"""What a forward pass keeps for its backward pass, measured at real size without memory."""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from triptych.models.remember.index.product_keys import ProductKeyIndex
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import MemoryLayer, SwiluGate
from triptych.models.remember.values.value_table import ValueTable

Learns = Literal["all", "inputs"]

#: Causal attention without a mask. By "sdpa" transformers builds one for fake tensors, since it
#: cannot look into them; with a mask, keys and values are repeated for each query head.
_WITHOUT_MASK = "causal_without_mask"
AttentionInterface.register(_WITHOUT_MASK, sdpa_attention_forward)
AttentionMaskInterface.register(_WITHOUT_MASK, lambda *_, **__: None)

#: Two lengths, from which the part that grows with the tokens is told from the rest.
_LENGTHS = (256, 768)
#: Rows of the real, small measurement of a memory layer.
_MEMORY_TOKENS = (64, 192)


@dataclass(frozen=True)
class Activations:
    """Bytes kept between the forward and the backward pass.

    Attributes:
        per_token: Bytes of each token.
        once: Bytes that do not depend on the tokens: weights cast for the products.
    """

    per_token: float
    once: float

    def of(self, num_tokens: int) -> float:
        """Return the bytes of one pass over so many tokens."""
        return self.per_token * num_tokens + self.once


def block_activations(
    config: PretrainedConfig,
    *,
    learns: Learns = "all",
    weights: torch.dtype = torch.float32,
    autocast: bool = True,
    masked: bool = False,
) -> Activations:
    """Measure one decoder block of a family, by torch's own bookkeeping on fake tensors.

    Args:
        config: The model.
        learns: `all` weights (adapters need the same inputs of the products), or `inputs`: frozen
            weights through which gradients flow.
        weights: Precision of the weights.
        autocast: Whether products run in bfloat16 under autocast.
        masked: Whether attention gets a mask, as completions that share a prompt do.
    """
    attention = "sdpa" if masked else _WITHOUT_MASK
    fewer, more = (
        _model_activations(_with_blocks(config, blocks), learns, weights, autocast, attention)
        for blocks in (1, 2)
    )
    return Activations(more.per_token - fewer.per_token, max(0.0, more.once - fewer.once))


def memory_activations(memory: MemoryConfig, hidden_size: int) -> Activations:
    """Measure one memory layer on real tensors of its widths, with few slots.

    What is kept of a token depends on heads, reads and widths, and not on the number of slots.
    """
    num_keys = max(16, memory.top_k)
    value_dim = memory.value_dim or hidden_size
    table = ValueTable(
        num_keys**2, value_dim, dtype=getattr(torch, memory.value_dtype or "float32")
    )
    index = ProductKeyIndex(num_keys, memory.num_heads, memory.key_dim or hidden_size // 2)
    gate = SwiluGate(hidden_size, value_dim) if memory.gated else None
    layer = MemoryLayer(hidden_size, memory.top_k, index, table, gate)

    def run(num_tokens: int) -> float:
        hidden_TM = torch.randn(num_tokens, hidden_size, requires_grad=True)
        with torch.autocast("cpu", torch.bfloat16):
            return _kept_bytes(lambda: layer(hidden_TM), [layer, table], hidden_TM)

    return _line(run, _MEMORY_TOKENS)


def num_parameters(config: PretrainedConfig) -> int:
    """Count a model's parameters without building it in memory."""
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config)
    return sum(parameter.numel() for parameter in model.parameters())


def _model_activations(
    config: PretrainedConfig,
    learns: Learns,
    weights: torch.dtype,
    autocast: bool,
    attention: str,
) -> Activations:
    with FakeTensorMode():
        model: PreTrainedModel = AutoModelForCausalLM.from_config(
            config, dtype=weights, attn_implementation=attention
        )
        model.requires_grad_(learns == "all")
        model.eval()

        def run(length: int) -> float:
            hidden_BTD = torch.zeros(1, length, config.hidden_size, dtype=weights)
            hidden_BTD.requires_grad_()
            with _maybe_autocast(autocast):
                return _kept_bytes(
                    lambda: model.base_model(inputs_embeds=hidden_BTD, use_cache=False), [model]
                )

        return _line(run, _LENGTHS)


def _line(run: Callable[[int], float], lengths: tuple[int, int]) -> Activations:
    short, long = (run(length) for length in lengths)
    slope = (long - short) / (lengths[1] - lengths[0])
    return Activations(slope, short - slope * lengths[0])


def _kept_bytes(run: Callable[[], Any], modules: list[nn.Module], *known: Tensor) -> float:
    """Sum the storages that autograd keeps, without those of parameters and inputs."""
    own = {t.untyped_storage()._cdata for m in modules for t in (*m.parameters(), *m.buffers())}
    own |= {t.untyped_storage()._cdata for t in known}
    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept.setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    total = sum(t.untyped_storage().nbytes() for key, t in kept.items() if key not in own)
    del result
    return float(total)


def _with_blocks(config: PretrainedConfig, blocks: int) -> PretrainedConfig:
    settings = config.to_dict() | {"num_hidden_layers": blocks, "vocab_size": 64}
    settings.pop("layer_types", None)
    return type(config)(**settings)


@contextlib.contextmanager
def _maybe_autocast(enabled: bool) -> Iterator[None]:
    with torch.autocast("cpu", torch.bfloat16, enabled=enabled):
        yield
