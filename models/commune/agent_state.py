"""The hidden state that represents an agent's thought.

Paper: ThoughtComm, 2510.20733: the last token's state. The paper does not state the layer; its
authors are quoted with two thirds of the depth.
"""

from dataclasses import dataclass
from typing import Literal, get_args

from torch import Tensor

# Shapes: B prompts, C positions of prefix and prompt, D width

Pool = Literal["last", "mean"]


@dataclass(frozen=True)
class StateConfig:
    """The choice of the hidden state that represents an agent's thought.

    Args:
        depth: Share of the layers below the state; 1: the output of the last layer.
        pool: State of the `last` token, as in the paper, or the `mean` over prompt and prefix.

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
        """Return the number of layers below the state, at least 1.

        >>> StateConfig().layer(28)
        19
        """
        return max(1, round(self.depth * num_layers))


def pool_states(hidden_BCD: Tensor, mask_BC: Tensor, config: StateConfig) -> Tensor:
    """Pool each row to one vector: the last position, or the mean over unmasked positions."""
    if config.pool == "last":
        return hidden_BCD[:, -1]
    weight_BC1 = mask_BC[:, :, None].to(hidden_BCD)
    return (hidden_BCD * weight_BC1).sum(1) / weight_BC1.sum(1)
