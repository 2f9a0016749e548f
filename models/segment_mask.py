"""Attention within packed documents."""

import torch
from torch import Tensor

# Shapes: B rows, T time


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
