"""The hidden state that stands for what an agent thinks.

Paper: ThoughtComm, 2510.20733: the last token's. Which layer is not in the paper; two thirds of the
depth is what its authors are quoted with.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

# Shapes: B prompts, C positions of prefix and prompt, D width

Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class StateConfig:
    """Which hidden state stands for what an agent thinks.

    Args:
        depth: Share of the layers below it; 1: the output of the last one.
        pool: `last` token, the paper's, or the `mean` over prompt and prefix.

    Raises:
        ValueError: if a setting is out of range.
    """

    depth: float = 2 / 3
    pool: Pool = "last"

    def __post_init__(self) -> None:
        if not 0 < self.depth <= 1:
            raise ValueError(f"state.depth is {self.depth}: set it above 0 and to at most 1")
        if self.pool not in get_args(Pool):
            raise ValueError(f"state.pool is {self.pool!r}: choose last or mean")

    def layer(self, num_layers: int) -> int:
        """Number of layers below the state, at least 1.

        >>> StateConfig().layer(28)
        19
        """
        return max(1, round(self.depth * num_layers))


def pool_states(hidden_BCD: Tensor, mask_BC: Tensor, config: StateConfig) -> Tensor:
    """One vector a row: the last position's, or the mean over what the mask keeps."""
    if config.pool == "last":
        return hidden_BCD[:, -1]
    weight_BC1 = mask_BC[:, :, None].to(hidden_BCD)
    return (hidden_BCD * weight_BC1).sum(1) / weight_BC1.sum(1)
