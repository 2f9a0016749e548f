"""Linear algebra that fits a linear codec to its full objective, in place of gradient steps.

With uncorrelated latents of unit variance (the decorrelation penalty at full weight), a linear
codec of Z latents is a rotation Q of the whitened states e = F x and a decoder D. With A = E x e^T
the objective over the whole data set,

    mean ||x - D z||^2 + weight ||D||_1  =  ||A - D Q||_F^2 + weight ||D||_1 + constant,

does not depend on the samples. Both alternating steps have closed-form minima:

    D = soft threshold of A Q^T at weight / 2         Q = orthogonal factor of D^T A

Each turn lowers the objective. A turn takes 4 H Z^2 + O(Z^3) operations for any number of samples;
an epoch of gradient steps takes 12 N H Z. The fit starts with a weight that only the largest
entries survive, which avoids most poor minima, and continues with the final weight.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink

from triptych.models.commune.perceptron import Perceptron
from triptych.models.commune.thought_codec import ThoughtCodec

# Shapes: N samples, H state dimensions of all agents, Z latents


class WhitenedStates:
    """Moments of the states that the objective needs, shared by all restarts.

    Args:
        scores_NH: Standardized states.
        num_latents: Z, at most the rank of the states.
    """

    def __init__(self, scores_NH: Tensor, num_latents: int) -> None:
        covariance_HH = (scores_NH.mT @ scores_NH / len(scores_NH)).double()
        # Only the leading Z directions: exact if the states have rank Z.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            basis_HZ, value_Z, _ = torch.svd_lowrank(covariance_HH, q=num_latents, niter=4)
        self.mix_HZ = (basis_HZ * value_Z.sqrt()).float()
        self.filter_ZH = (basis_HZ / value_Z.sqrt()).mT.float()

    def whiten(self, scores_NH: Tensor) -> Tensor:
        """Return uncorrelated scores of unit variance, (N, Z)."""
        return scores_NH @ self.filter_ZH.mT


def fit_rotation(
    mix_HZ: Tensor,
    weight: float,
    seed: int,
    max_turns: int = 200,
    tolerance: float = 1e-6,
) -> tuple[Tensor, Tensor]:
    """Alternate between the two closed-form minima.

    Args:
        mix_HZ: A.
        weight: Weight of ||D||_1, a sum over elements; at 0 every rotation is a minimum, and the
            initial one is returned.
        seed: Seed of the initial rotation.
        max_turns: Maximum turns at each weight.
        tolerance: Relative decrease of the objective that ends the turns.

    Returns:
        Rotation (Z, Z) and decoder (H, Z).
    """
    num_latents = mix_HZ.shape[1]
    generator = torch.Generator().manual_seed(seed)
    rotation_ZZ, _ = torch.linalg.qr(torch.randn(num_latents, num_latents, generator=generator))
    rotation_ZZ = rotation_ZZ.to(mix_HZ)
    if weight == 0:
        return rotation_ZZ, mix_HZ @ rotation_ZZ.mT
    # Rows have length 1, so an element of a fully mixed decoder is about 1 / sqrt(Z).
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
    """Draw a minimum of the reconstruction error alone, for latents of unit variance.

    Every encoder of full rank is a minimum, so training keeps the encoder that was drawn.

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
    """Write weights and statistics of the latents into a codec without hidden layers."""
    for perceptron, weight in ((codec.encoder.parts[0], encoder_ZH), (codec.decoder, decoder_HZ)):
        assert isinstance(perceptron, Perceptron)
        linear = perceptron.layers[0]
        assert isinstance(linear, nn.Linear)
        linear.weight.copy_(weight)
        linear.bias.zero_()
    codec.fit_latent_statistics(states_NH)
    codec.eval()
