"""The next-token loss of a transformers model on a batch of packed rows."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from triptych.models.linear_nll import output_weight
from triptych.models.segment_mask import packed_attention
from triptych.models.sharding import with_gathered_weights
from triptych.objectives.language_modeling import (
    NextTokenNLL,
    chunked_next_token_nll,
    next_token_nll,
)

Batch = dict[str, Any]


def batch_nll(model: PreTrainedModel, batch: Batch) -> NextTokenNLL:
    """Score every labelled token of a batch; attention stays within each document.

    Args:
        model: A causal language model.
        batch: `input_ids`, `position_ids`, `segment_ids` and `labels`, int64 (B, T), as
            `triptych.datamodules.batches.packing.collate_rows` lays them out.

    Returns:
        As `next_token_nll`. The logits are never held all at once, except in model families with a
        bias in the output layer or with rescaled logits.
    """
    inputs = {
        "input_ids": batch["input_ids"],
        "use_cache": False,
        **packed_attention(model.config, batch["segment_ids"], batch["position_ids"]),
    }
    if output_weight(model) is None:
        return next_token_nll(model(**inputs).logits, batch["labels"])
    return with_gathered_weights(model, _chunked_nll, model, inputs, batch["labels"])


def _chunked_nll(model: PreTrainedModel, inputs: dict[str, Any], labels_BT: Tensor) -> NextTokenNLL:
    hidden_BTD = model.base_model(**inputs).last_hidden_state
    weight_VD = output_weight(model)
    assert weight_VD is not None
    return chunked_next_token_nll(hidden_BTD, weight_VD, labels_BT)
