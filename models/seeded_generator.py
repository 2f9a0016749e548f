"""Random generators that are seeded by several numbers, such as seed, step and rank."""

import numpy as np
import torch


def seeded_generator(device: torch.device, *numbers: int) -> torch.Generator:
    """Create a generator whose state depends on all numbers, in their order.

    Args:
        device: Device of the generator.
        numbers: Non-negative integers; consecutive values give independent streams.

    >>> [seeded_generator(torch.device("cpu"), 1, step).initial_seed() for step in (0, 1)]
    [3941715100300054245, 2553429759821638025]
    """
    high, low = np.random.SeedSequence(numbers).generate_state(2)
    return torch.Generator(device=device).manual_seed(int(high) << 31 ^ int(low))
