"""The next-token loss of a transformers model on a batch of rows as the datamodules make them."""

from typing import Any

from transformers import PreTrainedModel

from models.segment_mask import segment_attention_mask
from objectives.language_modeling import NextTokenNLL, chunked_next_token_nll, next_token_nll

Batch = dict[str, Any]

# What a family may do to its logits beyond the output layer (Gemma, Cohere, Granite).
_LOGIT_SETTINGS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def batch_nll(model: PreTrainedModel, batch: Batch) -> NextTokenNLL:
    """Score every labelled token of a batch, each document seeing only itself.

    Args:
        model: A causal language model.
        batch: `input_ids`, `position_ids`, `segment_ids` and `labels`, int64 (B, T), as
            `datamodules.packing.collate_rows` lays them out.

    Returns:
        As `next_token_nll`. The logits are never held all at once, except in families whose output
        layer has a bias or rescales them.
    """
    inputs = {
        "input_ids": batch["input_ids"],
        "position_ids": batch["position_ids"],
        "attention_mask": segment_attention_mask(batch["segment_ids"]),
        "use_cache": False,
    }
    head = model.get_output_embeddings()
    if getattr(head, "bias", None) is not None or _rescales_logits(model):
        return next_token_nll(model(**inputs).logits, batch["labels"])
    hidden_BTD = model.base_model(**inputs).last_hidden_state
    return chunked_next_token_nll(hidden_BTD, head.weight, batch["labels"])


def _rescales_logits(model: PreTrainedModel) -> bool:
    return any(getattr(model.config, name, None) for name in _LOGIT_SETTINGS)
