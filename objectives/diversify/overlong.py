"""Completions that reach the length limit: a soft penalty before it, or no weight at all.

Source: DAPO, 2503.14476, section 3.4 (overlong filtering, and soft overlong punishment, equation
13). With L the length, L_max the limit and L_cache the buffer before it:

    0                                   if L <= L_max - L_cache
    ((L_max - L_cache) - L) / L_cache   up to L_max, where it is -1
"""

# Shapes: B completions

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Overlong:
    """What to do with long completions in training; validation scores them as they are.

    Args:
        mask_unfinished: Completions that were cut at the limit have no weight in the loss and
            cannot be anchors.
        buffer: L_cache, tokens before the limit in which the penalty grows; null: no penalty.
        penalty: Amount that is subtracted from the reward of a completion at the limit.

    Raises:
        ValueError: on settings that cannot work.
    """

    mask_unfinished: bool = False
    buffer: int | None = None
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if not self.mask_unfinished and self.buffer is None:
            raise ValueError(
                "overlong does nothing: set mask_unfinished to true, or buffer to a number of "
                "tokens, or overlong to null"
            )
        if self.buffer is not None and self.buffer < 1:
            raise ValueError(f"buffer is {self.buffer}: set it to at least 1 token, or to null")
        if not self.penalty > 0:
            raise ValueError(f"penalty is {self.penalty}: set it above 0")

    def addition(self, num_tokens_B: Tensor, max_new_tokens: int) -> Tensor:
        """Compute what is added to each reward, from -`penalty` to 0: float32 (B,).

        Args:
            num_tokens_B: Tokens of each completion, end token included.
            max_new_tokens: Length limit of sampling.

        >>> Overlong(buffer=4).addition(torch.tensor([5, 6, 8, 10]), max_new_tokens=10)
        tensor([ 0.0000,  0.0000, -0.5000, -1.0000])
        """
        if self.buffer is None:
            return torch.zeros_like(num_tokens_B, dtype=torch.float32)
        room_B = (max_new_tokens - self.buffer) - num_tokens_B.float()
        return self.penalty * (room_B / self.buffer).clamp(-1.0, 0.0)
