"""Queries of standardised states, so that a new memory is read broadly before anything learns."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.models.remember.memory_blocks import memory_layers
from triptych.models.remember.memory_layer import MemoryLayer
from triptych.models.segment_mask import packed_attention

# Shapes: N tokens, M hidden size, Q width of all heads' queries


class FeatureMoments:
    """Mean and standard deviation of each feature over tokens, summed in float64.

    Args:
        width: M.
        device: Of the sums.
    """

    def __init__(self, width: int, device: torch.device) -> None:
        self.num_tokens = 0
        self._sums_2M = torch.zeros(2, width, dtype=torch.float64, device=device)

    def add(self, states_NM: Tensor) -> None:
        """Count the states of some tokens."""
        exact_NM = states_NM.double()
        self.num_tokens += len(exact_NM)
        self._sums_2M += torch.stack([exact_NM.sum(0), exact_NM.square().sum(0)])

    def mean_and_deviation(self) -> tuple[Tensor, Tensor]:
        """Return both, (M,) each, in float64; a constant feature has the deviation 1."""
        mean_M, square_M = self._sums_2M / self.num_tokens
        variance_M = square_M - mean_M.square()
        is_constant_M = variance_M <= 1e-10 * square_M
        return mean_M, torch.where(is_constant_M, 1.0, variance_M.clamp_min(0)).sqrt()


@torch.no_grad()
def standardise_queries(model: PreTrainedModel, batches: Iterable[dict[str, Any]]) -> int:
    """Let a new memory ask with standardised states, in place; one forward pass over ordinary text.

    The hidden states of a pretrained model share a large mean and a few large features, so random
    queries of them are nearly the same for all tokens, and few slots are read. Each layer's query
    projection becomes that of (x - mean) / deviation, with the moments of each feature over this
    text. Both are folded into weight and bias: there are no further parameters.

    Call it once, after the memory was put into a pretrained model and before anything is trained or
    counted; it changes which slots are read.

    Args:
        model: A model whose memory adds nothing yet.
        batches: Text of the kind the model will read, such as documents and chats in its template:
            `input_ids`, `position_ids` and `segment_ids`, int64 (B, T), as
            `triptych.datamodules.batches.packing.collate_rows` lays them out. A few thousand
            tokens suffice.

    Returns:
        The number of tokens read.

    Raises:
        ValueError: if there is no memory or no text, or the queries were standardised or trained
            already (their bias is not zero).
    """
    layers = memory_layers(model)
    if not layers:
        raise ValueError("the model has no memory layers whose queries could be standardised")
    if any(layer.query.bias.any() for layer in layers):
        raise ValueError(
            "the memory's queries were standardised or trained before; doing it again would change "
            "which slots are read. Standardise them once, right after the memory is inserted"
        )
    moments = [FeatureMoments(layer.query.in_features, model.device) for layer in layers]
    entering: dict[MemoryLayer, Tensor] = {}

    def keep(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, MemoryLayer)
        entering[module] = given[0]

    handles = [layer.register_forward_pre_hook(keep) for layer in layers]
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        for batch in batches:
            ids, positions, segments = (
                batch[name].to(model.device)
                for name in ("input_ids", "position_ids", "segment_ids")
            )
            attention = packed_attention(model.config, segments, positions)
            model.base_model(input_ids=ids, use_cache=False, **attention)
            for layer, moment in zip(layers, moments, strict=True):
                moment.add(entering[layer][segments > 0])
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    if moments[0].num_tokens < 2:
        raise ValueError(f"{moments[0].num_tokens} tokens of text have no standard deviation")
    for layer, moment in zip(layers, moments, strict=True):
        _fold(layer.query, *moment.mean_and_deviation())
    return moments[0].num_tokens


def _fold(query: nn.Linear, mean_M: Tensor, deviation_M: Tensor) -> None:
    """Replace q(x) by q((x - mean) / deviation)."""
    weight_QM = query.weight.double() / deviation_M
    query.weight.copy_(weight_QM)
    query.bias.copy_(-(weight_QM @ mean_M))
