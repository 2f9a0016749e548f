"""Fits a linear codec to its whole objective by linear algebra, in place of gradient steps.

With latents uncorrelated and of unit variance (the decorrelation penalty at full weight), a linear
codec of Z latents is a rotation Q of the whitened states e = F x, and a decoder D. With A = E x e^T
the objective over the whole data set,

    mean ||x - D z||^2 + weight ||D||_1  =  ||A - D Q||_F^2 + weight ||D||_1 + constant,

needs no samples any more. Its two halves have closed-form minima, so that each turn of

    D = soft threshold of A Q^T at weight / 2         Q = orthogonal factor of D^T A

lowers it. A turn is 4 H Z^2 + O(Z^3) operations, whatever the number of samples; an epoch of
gradient steps is 12 N H Z. Started at a weight where only the largest entries survive, which avoids
most poor minima, then at the one asked for.
"""

import torch
from torch import Tensor
from torch.nn.functional import softshrink

from triptych.models.commune.thought_codec import ThoughtCodec

# Shapes: N samples, H state dimensions of all agents, Z latents


class WhitenedStates:
    """What the objective needs to know of the states, shared by all restarts.

    Args:
        scores_NH: Standardized states.
        num_latents: Z, at most their rank.
    """

    def __init__(self, scores_NH: Tensor, num_latents: int) -> None:
        covariance_HH = (scores_NH.mT @ scores_NH / len(scores_NH)).double()
        # The leading Z directions alone: exact where the states have rank Z.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            basis_HZ, value_Z, _ = torch.svd_lowrank(covariance_HH, q=num_latents, niter=4)
        self.mix_HZ = (basis_HZ * value_Z.sqrt()).float()
        self.filter_ZH = (basis_HZ / value_Z.sqrt()).mT.float()

    def whiten(self, scores_NH: Tensor) -> Tensor:
        """Uncorrelated scores of unit variance, (N, Z)."""
        return scores_NH @ self.filter_ZH.mT


def fit_rotation(
    mix_HZ: Tensor,
    weight: float,
    seed: int,
    max_turns: int = 200,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Alternate the two minima.

    Args:
        mix_HZ: A.
        weight: Of ||D||_1, a sum over elements; at 0 every rotation is a minimum, and the one that
            was drawn is returned.
        seed: Of the first rotation.
        max_turns: Turns at each weight.
        tolerance: Relative decrease of the objective at which to stop.

    Returns:
        Rotation (Z, Z) and decoder (H, Z).
    """
    num_latents = mix_HZ.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation_ZZ, _ = torch.linalg.qr(torch.randn(num_latents, num_latents, generator=generator))
    rotation_ZZ = rotation_ZZ.to(mix_HZ)
    if weight == 0:
        return rotation_ZZ, mix_HZ @ rotation_ZZ.mT
    # Rows have length 1, so that 1 / sqrt(Z) is the size of an element of a mixed-up decoder.
    for shrink in (max(num_latents**-0.5, weight / 2), weight / 2):
        before = float("inf")
        for _ in range(max_turns):
            rotated_HZ = mix_HZ @ rotation_ZZ.mT
            decoder_HZ = softshrink(rotated_HZ, shrink)
            error = (rotated_HZ - decoder_HZ).square().sum()
            objective = float(error + 2 * shrink * decoder_HZ.abs().sum())
            if before - objective <= tolerance * objective:
                break
            before = objective
            left, _, right = torch.linalg.svd(decoder_HZ.mT @ mix_HZ)
            rotation_ZZ = left @ right
    return rotation_ZZ, softshrink(mix_HZ @ rotation_ZZ.mT, weight / 2)


def draw_plain(mix_HZ: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """A minimum of the reconstruction error alone, for latents of unit variance.

    Every encoder of full rank is one, so the one that is drawn is where training ends too.

    Returns:
        Map of whitened states to latents (Z, Z), rows of length 1, and its decoder (H, Z).
    """
    num_latents = mix_HZ.shape[1]
    generator = torch.Generator().manual_seed(seed)
    drawn_ZZ = torch.randn(num_latents, num_latents, generator=generator, dtype=torch.float64)
    map_ZZ = torch.nn.functional.normalize(drawn_ZZ, dim=1)
    decoder_HZ = torch.linalg.solve(map_ZZ, mix_HZ.double(), left=False)
    return map_ZZ.to(mix_HZ), decoder_HZ.to(mix_HZ)


@torch.no_grad()
def set_linear_codec(
    codec: ThoughtCodec, encoder_ZH: Tensor, decoder_HZ: Tensor, states_NH: Tensor
) -> None:
    """Write weights into a codec without hidden layers, and its latents' statistics."""
    encoder, decoder = codec.encoder.parts[0], codec.decoder
    encoder.layers[0].weight.copy_(encoder_ZH)
    encoder.layers[0].bias.zero_()
    decoder.layers[0].weight.copy_(decoder_HZ)
    decoder.layers[0].bias.zero_()
    codec.fit_latent_statistics(states_NH)
    codec.eval()
