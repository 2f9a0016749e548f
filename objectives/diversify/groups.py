"""Groups of completions, found without a wait for the device."""

# Shapes: B completions

import torch
from torch import Tensor


def first_of_group(group_B: Tensor) -> Tensor:
    """Return the first row of each row's group: int64 (B,), a number of the group below B.

    `torch.unique` would make the host wait for the number of groups.

    >>> first_of_group(torch.tensor([7, 3, 7, 3]))
    tensor([0, 1, 0, 1])
    """
    row_B = torch.arange(len(group_B), device=group_B.device)
    sorted_B, order_B = group_B.sort(stable=True)
    # Equal groups are adjacent now, first rows first: take the row at the last change so far.
    starts_B = torch.ones_like(sorted_B, dtype=torch.bool)
    starts_B[1:] = sorted_B[1:] != sorted_B[:-1]
    begin_B = torch.where(starts_B, row_B, 0).cummax(0).values
    return torch.empty_like(row_B).scatter(0, order_B, order_B[begin_B])
