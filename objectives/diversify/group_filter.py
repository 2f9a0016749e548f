"""Groups from which nothing can be learned: all their completions have the same reward.

Source: dynamic sampling of DAPO, 2503.14476, section 3.2, which samples until every group of the
batch has right and wrong completions.
"""

# Shapes: B completions

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.diversify.groups import first_of_group


@dataclass(frozen=True)
class GroupFilter:
    """What to do with groups whose rewards are all equal.

    The rewards are those to optimise, without a KL. With MARA a group of right answers therefore
    counts as equal only if they are equally likely under the reference.

    Args:
        action: `drop`: their completions have no weight in the loss, not even for the KL.
            `resample`: their prompts are sampled again, with fresh noise; what is still equal after
            `most_tries` is dropped. DAPO draws other prompts instead, so that a step has as many
            groups as the batch has prompts; here it may have fewer.
        most_tries: Further samplings in a step, for `resample`.

    Raises:
        ValueError: if `most_tries` is below 1.
    """

    action: Literal["drop", "resample"] = "drop"
    most_tries: int = 2

    def __post_init__(self) -> None:
        if self.most_tries < 1:
            raise ValueError(
                f"most_tries is {self.most_tries}: set it to at least 1, or action to drop"
            )

    @property
    def tries(self) -> int:
        """Further samplings in a step."""
        return self.most_tries if self.action == "resample" else 0


def in_equal_group(reward_B: Tensor, group_B: Tensor, tolerance: float = 1e-6) -> Tensor:
    """Return whether all scored rewards of a row's group are equal: bool (B,).

    Also True in groups with fewer than two scored completions.

    >>> in_equal_group(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1]))
    tensor([ True,  True, False, False])
    """
    first_B = first_of_group(group_B)
    scored_B = ~reward_B.isnan()
    spread_B = torch.zeros_like(reward_B)
    for sign in (1, -1):
        lowest_B = torch.full_like(reward_B, -torch.inf)
        value_B = (sign * reward_B).masked_fill(~scored_B, -torch.inf)
        spread_B = spread_B + lowest_B.scatter_reduce(0, first_B, value_B, "amax")[first_B]
    return ~(spread_B > tolerance)
