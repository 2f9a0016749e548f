"""Attention within packed documents."""

from typing import Any

import torch
from torch import Tensor
from transformers import PretrainedConfig

# Shapes: B rows, T time, N documents of all rows

#: Families whose attention passes the borders of documents on to a flash kernel, and whose masks
#: follow restarting positions (`tests/models/test_packed_attention.py`).
# fmt: off
KEEPS_DOCUMENTS_APART = frozenset((
    "cohere", "ernie4_5", "exaone4", "gemma", "gemma2", "gemma3_text", "glm4", "gpt2",
    "gpt_neox", "granite", "hunyuan_v1_dense", "internlm3", "llama", "mistral", "olmo2", "phi",
    "phi3", "qwen2", "qwen3", "seed_oss", "smollm3", "starcoder2",
))
# fmt: on


def packed_attention(
    config: PretrainedConfig, segment_ids_BT: Tensor, position_ids_BT: Tensor
) -> dict[str, Any]:
    """Return the arguments of a forward pass that keep packed documents apart.

    Flash kernels get the borders of the documents, and flex attention finds them in the positions,
    which restart at each. Neither needs a mask of B T T entries. The others get a dense mask.

    Args:
        config: The model's config, with its attention implementation.
        segment_ids_BT: int64; see `segment_attention_mask`.
        position_ids_BT: int64; from 0 in each document.

    Returns:
        `position_ids`, `attention_mask` and, for flash kernels, the borders.

    Raises:
        ValueError: if the family is not known to keep documents apart with this implementation.

    >>> segments, positions = torch.tensor([[1, 1, 2], [1, 1, 1]]), torch.tensor([[0, 1, 0]] * 2)
    >>> config = PretrainedConfig(model_type="llama", attn_implementation="flash_attention_2")
    >>> packed_attention(config, segments, positions)["cu_seq_lens_q"].tolist()
    [0, 2, 3, 6]
    """
    implementation = config._attn_implementation or "eager"
    inputs: dict[str, Any] = {"position_ids": position_ids_BT, "attention_mask": None}
    is_flash = "flash" in implementation  # kernels of the Hub are named so too
    if not is_flash and implementation != "flex_attention":
        mask_B1TT = segment_attention_mask(segment_ids_BT)
        # Eager attention adds its mask to the scores.
        inputs["attention_mask"] = mask_B1TT if implementation == "sdpa" else _additive(mask_B1TT)
        return inputs
    family = config.model_type.removeprefix("memory-")
    if family not in KEEPS_DOCUMENTS_APART:
        raise ValueError(
            f"{family} is not known to keep packed documents apart with attn_implementation="
            f"{implementation}: set base.attn_implementation to sdpa, or leave it out"
        )
    if is_flash:
        borders_N = _document_borders(segment_ids_BT)
        longest = segment_ids_BT.shape[1]  # an upper bound, without a wait for the device
        inputs |= {"cu_seq_lens_q": borders_N, "cu_seq_lens_k": borders_N}
        inputs |= {"max_length_q": longest, "max_length_k": longest}
    return inputs


def segment_attention_mask(segment_ids_BT: Tensor) -> Tensor:
    """Build a causal attention mask that stays within each packed document.

    Args:
        segment_ids_BT: int64; positions of a row with equal numbers form a document. Padding (0)
            attends to padding, so that no row of the softmax is empty.

    Returns:
        attend_B1TT: bool, True where the query (third axis) may read the key (fourth).

    >>> segment_attention_mask(torch.tensor([[1, 1, 2]]))[0, 0].int().tolist()
    [[1, 0, 0], [1, 1, 0], [0, 0, 1]]
    """
    length = segment_ids_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=segment_ids_BT.device).tril()
    same_BTT = segment_ids_BT.unsqueeze(2) == segment_ids_BT.unsqueeze(1)
    return (same_BTT & causal_TT).unsqueeze(1)


def _additive(mask: Tensor) -> Tensor:
    """Turn a mask into one that is added to scores."""
    lowest = torch.finfo(torch.bfloat16).min  # finite in float32 too
    allowed = torch.zeros(mask.shape, device=mask.device, dtype=torch.float32)
    return allowed.masked_fill_(~mask, lowest)


def _document_borders(segment_ids_BT: Tensor) -> Tensor:
    """Return the N begins of documents in the flattened rows, and the last end: int32."""
    begins_BT = torch.ones_like(segment_ids_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segment_ids_BT[:, 1:] != segment_ids_BT[:, :-1]
    begin_N = begins_BT.flatten().nonzero().squeeze(1).to(torch.int32)
    return torch.nn.functional.pad(begin_N, (0, 1), value=segment_ids_BT.numel())
