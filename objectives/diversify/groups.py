"""Groups of completions, found without a wait for the device."""

# Shapes: B completions

import math

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


def equal_groups(reward_B: Tensor, group_B: Tensor) -> tuple[Tensor, Tensor]:
    """Mark groups with equal rewards, and groups with two or more: both bool (B,), at first rows.

    Args:
        reward_B: Rewards; nan where there is none.
        group_B: int64; completions of one prompt share a number.

    >>> reward_B = torch.tensor([1.0, float("nan"), 1.0, 0.0, 2.0, 5.0])
    >>> equal_B, several_B = equal_groups(reward_B, torch.tensor([4, 4, 4, 7, 7, 8]))
    >>> equal_B.nonzero().flatten(), several_B.nonzero().flatten()
    (tensor([0]), tensor([0, 3]))
    """
    first_B = first_of_group(group_B)
    scored_B = ~reward_B.isnan()

    def extreme(fill: float, reduce: str) -> Tensor:
        filled_B = torch.full_like(reward_B, fill)
        own_B = torch.where(scored_B, reward_B, fill)
        return filled_B.scatter_reduce(0, first_B, own_B, reduce)

    count_B = torch.zeros_like(first_B).index_add(0, first_B, scored_B.long())
    several_B = count_B > 1
    return several_B & (extreme(-math.inf, "amax") == extreme(math.inf, "amin")), several_B
