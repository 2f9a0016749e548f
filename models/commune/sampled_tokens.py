"""Seeded sampling of replies, each row with noise of its own.

A row's noise depends on its seed and prompt alone. So a reply is the same whichever rows stand
beside it, now or later; and conditions that differ in a prefix alone are compared under the same
noise.
"""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import LogitsProcessor

# Shapes: B rows, V vocabulary


class RowNoise(LogitsProcessor):
    """Adds Gumbel noise to logits, after which the largest is a sample from their softmax.

    Args:
        prompts: Token ids of each row, from which its noise follows, with the seed.
        temperature: Sampling temperature, above 0.
        seed: Seed of all rows.
        device: Where the logits are.
    """

    def __init__(
        self,
        prompts: Sequence[Sequence[int]],
        temperature: float,
        seed: int,
        device: torch.device,
    ) -> None:
        self.temperature = temperature
        self._generators = [
            torch.Generator(device).manual_seed(row_seed(prompt, seed)) for prompt in prompts
        ]

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """Return the noisy logits, (B, V)."""
        noise = [
            torch.empty(scores.shape[1], device=scores.device, dtype=torch.float32).exponential_(
                generator=generator
            )
            for generator in self._generators
        ]
        return scores.float() / self.temperature - torch.stack(noise).log()


def row_seed(prompt: Sequence[int], seed: int) -> int:
    """Return the seed of a row, from 0 to 2^63 - 1.

    >>> row_seed([1, 2], 0) == row_seed([1, 2], 0) != row_seed([1, 2], 1)
    True
    """
    text = f"{seed} {list(prompt)}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
