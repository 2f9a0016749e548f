"""Float32 numbers rounded to bfloat16 at random, so that the mean is exact.

bfloat16 keeps 8 bits of a number. Rounded to the nearest, an update below about 1/512 of a weight
is lost, every step anew: a small decay does nothing at all. Rounded up or down at random, with the
probability that makes the mean right, updates add up to what they would be in float32.
"""

import torch
from torch import Tensor

_CUT_BITS = 16  # the bits of a float32 that bfloat16 does not have


def round_stochastically(x: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Round to bfloat16, up or down at random, with x as the mean.

    Args:
        x: float32. A number that bfloat16 can hold stays as it is.
        generator: Source of the random bits, on the device of x.

    Returns:
        bfloat16, in the shape of x.

    >>> x = torch.full((10_000,), 1 + 2**-9)  # a quarter of the way from 1 to the next number
    >>> rounded = round_stochastically(x, torch.Generator().manual_seed(0))
    >>> sorted(set(rounded.tolist())), bool((rounded.float().mean() - x[0]).abs() < 1e-4)
    ([1.0, 1.0078125], True)
    """
    noise = torch.randint(
        1 << _CUT_BITS, x.shape, dtype=torch.int32, device=x.device, generator=generator
    )
    # Floats of one sign are ordered as their bits are: a carry leads to the next number.
    bits = noise.add_(x.contiguous().view(torch.int32)).bitwise_and_(-1 << _CUT_BITS)
    return bits.view(torch.float32).to(torch.bfloat16)


def rounding_generator(device: torch.device, *place: int) -> torch.Generator:
    """Make the generator of one rounding, from its place in training alone.

    So a resumed run, and every process with a copy of the weights, rounds as the others do.

    Args:
        device: Device of the weights.
        place: Numbers that tell the roundings of a run apart: the step, the weight, the shard.
    """
    seed = 0
    for number in place:  # a linear congruence; the generator itself mixes the bits
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) % (1 << 63)
    return torch.Generator(device).manual_seed(seed)
