"""The hidden state that represents an agent's thought.

Paper: ThoughtComm, 2510.20733: the state of the last token that the agent generated. The paper does
not state the layer; its authors are quoted with two thirds of the depth.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

# Shapes: B prompts, C positions of prefix, prompt and reply, D width, N tokens

Pool = Literal["last", "mean", "sequence"]
Read = Literal["prompt", "reply"]


@dataclass(frozen=True)
class StateConfig:
    """The choice of the hidden state that represents an agent's thought.

    Args:
        depth: Share of the layers below the state; 1: the output of the last layer.
        pool: State of the `last` token, as in the paper; the `mean` over the last `num_states`
            tokens, or over all; or those of the last `num_states` tokens side by side (`sequence`).
        read: Read states of the `prompt`, or of the agent's own `reply` to it, as in the paper.
            The reply's end token is not read. An empty reply leaves the state of the prompt.
        num_states: Number of last tokens, for `mean` and `sequence`; null: all, for `mean`.

    Raises:
        ValueError: if a setting is out of range.
    """

    depth: float = 2 / 3
    pool: Pool = "last"
    read: Read = "prompt"
    num_states: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.depth <= 1:
            raise ValueError(f"state.depth is {self.depth}: set it above 0 and to at most 1")
        if self.pool not in get_args(Pool):
            raise ValueError(f"state.pool is {self.pool!r}: choose last, mean or sequence")
        if self.read not in get_args(Read):
            raise ValueError(f"state.read is {self.read!r}: choose prompt or reply")
        if self.num_states is not None and self.num_states < 1:
            raise ValueError(f"state.num_states is {self.num_states}: set it to at least 1")
        if self.pool == "last" and self.num_states not in (None, 1):
            raise ValueError(
                f"state.num_states is {self.num_states} and state.pool is last: set state.pool to "
                "mean or to sequence, or leave num_states out"
            )
        if self.pool == "sequence" and self.num_states is None:
            raise ValueError("state.pool is sequence: set state.num_states, the number of tokens")

    def layer(self, num_layers: int) -> int:
        """Return the number of layers below the state, at least 1.

        >>> StateConfig().layer(28)
        19
        """
        return max(1, round(self.depth * num_layers))

    def size(self, width: int) -> int:
        """Return the number of dimensions of a state.

        >>> StateConfig(pool="sequence", num_states=4).size(576)
        2304
        """
        return width * (self.num_states or 1) if self.pool == "sequence" else width


def pool_states(hidden_BCD: Tensor, mask_BC: Tensor, config: StateConfig) -> Tensor:
    """Make one vector of each row; a row with fewer tokens repeats its first one.

    Args:
        hidden_BCD: States of all positions, with padding before the tokens.
        mask_BC: True for tokens.
        config: Tokens to take.

    >>> hidden, mask = torch.arange(3.0)[None, :, None], torch.tensor([[False, True, True]])
    >>> pool_states(hidden, mask, StateConfig(pool="sequence", num_states=3))
    tensor([[1., 1., 2.]])
    """
    if config.pool == "last":
        return hidden_BCD[:, -1]
    if config.num_states is None:
        weight_BC1 = mask_BC[:, :, None].to(hidden_BCD)
        return (hidden_BCD * weight_BC1).sum(1) / weight_BC1.sum(1)
    last = hidden_BCD.shape[1] - 1
    first_B1 = last + 1 - mask_BC.sum(1, keepdim=True)
    wanted_N = torch.arange(last + 1 - config.num_states, last + 1, device=hidden_BCD.device)
    place_BN = torch.maximum(wanted_N, first_B1)
    taken_BND = hidden_BCD.take_along_dim(place_BN[:, :, None], 1)
    if config.pool == "sequence":
        return taken_BND.flatten(1)
    # A repeated first token counts once.
    weight_BN1 = (wanted_N >= first_B1)[:, :, None].to(hidden_BCD)
    return (taken_BND * weight_BN1).sum(1) / weight_BN1.sum(1)
