"""The Jacobian of a decoder: penalties on it, and their computation.

    exact         any decoder: forward-mode, one column at a time for the whole batch
    closed form   at most one hidden layer: the product of its weights (`closed_form_l1` keeps none)
    columns       unbiased: some columns of each sample, drawn without replacement
    blocks        unbiased: some rows and columns, in closed form
    probes        unbiased squared column norms of every agent: one backward pass per probe

Reverse mode row by row, `vmap(jacrev)`, costs n_h / n_z times as much as any of them, since a
decoder has many more outputs than inputs.

Paper: ThoughtComm, 2510.20733, adds lambda ||J||_1 of the decoder to the reconstruction error
without stating its computation or normalisation. Here every function takes `reduction`, since a
lambda has no meaning without it; the mean over samples is always taken. Estimators, group norms and
decorrelation are ours.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.func import jvp, vmap

from triptych.models.commune.perceptron import Perceptron
from triptych.objectives.commune.jacobian_blocks import product_l1

# Shapes: B batch, H state dimensions of all agents, Z latents, W hidden units, K agents,
#         C drawn columns, R drawn rows

Decoder = Callable[[Tensor], Tensor]
Reduction = Literal["sum", "mean"]


def jacobian(decoder: Decoder, latents_BZ: Tensor, chunk_size: int | None = None) -> Tensor:
    """Compute the full Jacobian by forward mode, for decoders that treat samples independently.

    Args:
        decoder: Maps (B, Z) to (B, H).
        latents_BZ: Latents at which to evaluate.
        chunk_size: Columns at a time; null: all. Fewer columns take less memory.

    Returns:
        (B, H, Z), differentiable.
    """

    def column(direction_Z: Tensor) -> Tensor:
        return _directional(decoder, latents_BZ, direction_Z.expand_as(latents_BZ))

    directions_ZZ = torch.eye(latents_BZ.shape[1], dtype=latents_BZ.dtype, device=latents_BZ.device)
    columns_ZBH = vmap(column, chunk_size=chunk_size)(directions_ZZ)
    return columns_ZBH.permute(1, 2, 0)


def closed_form_jacobian(decoder: Perceptron, latents_BZ: Tensor) -> Tensor:
    """Compute the full Jacobian of a perceptron with at most one hidden layer: (B, H, Z).

    Raises:
        ValueError: with more hidden layers.
    """
    out_HW, slopes_BW, in_WZ = decoder.jacobian_factors(latents_BZ)
    if slopes_BW is None or in_WZ is None:
        return out_HW.expand(len(latents_BZ), *out_HW.shape)
    return torch.einsum("hw,bw,wz->bhz", out_HW, slopes_BW, in_WZ)


def element_l1(jacobian_BHZ: Tensor, *, reduction: Reduction) -> Tensor:
    """Compute the paper's penalty: the l1 norm of all elements, mean over samples.

    Args:
        jacobian_BHZ: Jacobians.
        reduction: `sum` over rows and columns is the paper's ||J||_1; `mean` divides it by H Z.

    >>> element_l1(torch.tensor([[[1.0, -2.0]], [[3.0, 0.0]]]), reduction="sum")
    tensor(3.)
    """
    total = jacobian_BHZ.abs().sum((1, 2)).mean()
    return _reduce(total, jacobian_BHZ.shape[1] * jacobian_BHZ.shape[2], reduction)


def group_norm(
    squares_KZ: Tensor, state_sizes: Sequence[int], *, reduction: Reduction, epsilon: float = 1e-12
) -> Tensor:
    """Compute a group lasso: each latent's column in each agent's rows is a group over all samples.

    An l1 norm of elements thins out rows but rarely sets an agent's whole block of a column to
    zero, which makes a latent private. This norm removes whole blocks.

    Args:
        squares_KZ: Mean over samples of ||J_k[:, j]||^2, of agent k and latent j; see
            `block_squares` and `probed_squares`.
        state_sizes: Rows of each agent.
        reduction: `sum`: of the norms over agents and latents. `mean`: of the root mean square
            element of each block, so that the width of a state has no influence.
        epsilon: Added under the root, which has no derivative at 0.
    """
    if reduction == "mean":
        sizes_K1 = torch.tensor(state_sizes, dtype=torch.int64).to(squares_KZ)[:, None]
        return (squares_KZ / sizes_K1 + epsilon).sqrt().mean()
    _check_reduction(reduction)
    return (squares_KZ + epsilon).sqrt().sum()


def block_squares(jacobian_BHZ: Tensor, state_sizes: Sequence[int]) -> Tensor:
    """Average over samples the squared norm of each agent's part of each column: (K, Z)."""
    squares_HZ = jacobian_BHZ.square().mean(0)
    return torch.stack([part.sum(0) for part in squares_HZ.split(list(state_sizes))])


def closed_form_squares(
    decoder: Perceptron, latents_BZ: Tensor, state_sizes: Sequence[int]
) -> Tensor:
    """Compute `block_squares` of a perceptron with at most one hidden layer, without its Jacobian.

    With G_k = W2_k^T W2_k it is in_j^T diag(s) G_k diag(s) in_j: W^2 Z operations per sample and
    agent instead of H_k W Z. Where that is more, the block itself is formed.

    Raises:
        ValueError: with more hidden layers.
    """
    out_HW, slopes_BW, in_WZ = decoder.jacobian_factors(latents_BZ)
    blocks = out_HW.split(list(state_sizes))
    if slopes_BW is None or in_WZ is None:
        return torch.stack([block.square().sum(0) for block in blocks])
    scaled_BWZ = slopes_BW[:, :, None] * in_WZ
    squares = []
    for block_hW in blocks:
        if block_hW.shape[0] <= block_hW.shape[1]:
            squares.append((block_hW @ scaled_BWZ).square().sum(1).mean(0))
        else:
            gram_WW = block_hW.mT @ block_hW
            squares.append((scaled_BWZ * (gram_WW @ scaled_BWZ)).sum(1).mean(0))
    return torch.stack(squares)


def closed_form_l1(
    decoder: Perceptron,
    latents_BZ: Tensor,
    *,
    reduction: Reduction,
    max_elements: int = 2**24,
) -> Tensor:
    """Compute `element_l1` of a perceptron with at most one hidden layer.

    Value and gradient are formed together, some samples at a time; no Jacobian is kept.

    Args:
        decoder: A perceptron.
        latents_BZ: Latents at which to evaluate.
        reduction: See `element_l1`.
        max_elements: Elements of a Jacobian, or of its hidden factor, held at once; at least one
            sample.

    Raises:
        ValueError: with more hidden layers.
    """
    out_HW, slopes_BW, in_WZ = decoder.jacobian_factors(latents_BZ)
    num_elements = out_HW.shape[0] * latents_BZ.shape[1]
    if slopes_BW is None or in_WZ is None:
        return _reduce(out_HW.abs().sum(), num_elements, reduction)
    total = product_l1(out_HW, slopes_BW, in_WZ, max_elements)
    return _reduce(total, num_elements, reduction)


def column_l1(
    decoder: Decoder,
    latents_BZ: Tensor,
    num_columns: int,
    *,
    reduction: Reduction,
    chunk_size: int | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate `element_l1` without bias from columns drawn without replacement.

    Every sample draws its own columns, so the batch averages over latents. Exact when all columns
    are drawn.

    Args:
        decoder: Any decoder that treats samples independently.
        latents_BZ: Latents at which to evaluate.
        num_columns: C, columns drawn for each sample.
        reduction: See `element_l1`.
        chunk_size: Columns at a time; null: all.
        generator: Source of randomness.

    Raises:
        ValueError: if C is not in 1 to Z.
    """
    num_latents = latents_BZ.shape[1]
    _check_draw("num_columns", num_columns, num_latents, "latents")
    # A random order of the latents for each sample; the first C are drawn.
    order_BZ = torch.rand(
        latents_BZ.shape, generator=generator, device=latents_BZ.device, dtype=torch.float32
    ).argsort(1)
    drawn_CB = order_BZ[:, :num_columns].mT

    def column_sum(drawn_B: Tensor) -> Tensor:
        direction_BZ = torch.zeros_like(latents_BZ).scatter(1, drawn_B[:, None], 1.0)
        return _directional(decoder, latents_BZ, direction_BZ).abs().sum()

    sums_C = vmap(column_sum, chunk_size=chunk_size)(drawn_CB)
    with torch.no_grad():
        num_rows = decoder(latents_BZ[:1]).shape[1]
    total = sums_C.sum() * (num_latents / (num_columns * len(latents_BZ)))
    return _reduce(total, num_rows * num_latents, reduction)


def block_l1(
    decoder: Perceptron,
    latents_BZ: Tensor,
    num_rows: int,
    num_columns: int,
    *,
    reduction: Reduction,
    max_elements: int = 2**24,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate `element_l1` without bias from some rows and columns, in closed form.

    Rows and columns are drawn without replacement, the same for all samples of the batch. For a
    linear map, where all samples have the same Jacobian, the exact value costs less.

    Args:
        decoder: A perceptron with one hidden layer or none.
        latents_BZ: Latents at which to evaluate.
        num_rows: R.
        num_columns: C.
        reduction: See `element_l1`.
        max_elements: See `closed_form_l1`.
        generator: Source of randomness.

    Raises:
        ValueError: with more hidden layers, or if R or C is not in 1 to H or Z.
    """
    out_HW, slopes_BW, in_WZ = decoder.jacobian_factors(latents_BZ)
    total_rows, total_columns = out_HW.shape[0], latents_BZ.shape[1]
    _check_draw("num_rows", num_rows, total_rows, "dimensions of the states")
    _check_draw("num_columns", num_columns, total_columns, "latents")

    def draw(size: int, num_drawn: int) -> Tensor:
        order = torch.randperm(size, generator=generator, device=latents_BZ.device)
        return order[:num_drawn].sort().values

    rows_R, columns_C = draw(total_rows, num_rows), draw(total_columns, num_columns)
    if slopes_BW is None or in_WZ is None:
        drawn = out_HW[rows_R][:, columns_C].abs().sum()
    else:
        drawn = product_l1(out_HW[rows_R], slopes_BW, in_WZ[:, columns_C], max_elements)
    num_elements = total_rows * total_columns
    return _reduce(drawn * (num_elements / (num_rows * num_columns)), num_elements, reduction)


def probed_squares(
    decoder: Decoder,
    latents_BZ: Tensor,
    state_sizes: Sequence[int],
    num_probes: int = 1,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Estimate `block_squares` without bias, by one backward pass per agent and probe.

    With random signs v on agent k's rows, E (v^T J_k)_j^2 = ||J_k[:, j]||^2 for all j at once.
    Every sample draws its own signs. The root in `group_norm` is biased low; as it follows the mean
    over samples and probes, a larger batch has less bias.

    Args:
        decoder: Any decoder that treats samples independently.
        latents_BZ: Latents at which to evaluate.
        state_sizes: Rows of each agent.
        num_probes: Probes per agent.
        generator: Source of randomness.

    Returns:
        (K, Z), differentiable in the decoder's parameters (and in latents that require it).

    Raises:
        ValueError: if there is no probe, or the sizes do not sum to the decoder's outputs.
    """
    if num_probes < 1:
        raise ValueError(f"num_probes is {num_probes}: set it to at least 1")
    with torch.enable_grad():
        inputs_BZ = latents_BZ if latents_BZ.requires_grad else latents_BZ.detach().requires_grad_()
        states_BH = decoder(inputs_BZ)
        if sum(state_sizes) != states_BH.shape[1]:
            raise ValueError(
                f"state_sizes adds up to {sum(state_sizes)} and the decoder gives "
                f"{states_BH.shape[1]} dimensions: give the width of each agent's state"
            )
        squares = []
        for part_Bh in states_BH.split(list(state_sizes), 1):
            draws = []
            for _ in range(num_probes):
                signs_Bh = torch.randint(
                    2, part_Bh.shape, generator=generator, device=part_Bh.device
                ).to(part_Bh)
                (pulled_BZ,) = torch.autograd.grad(
                    part_Bh, inputs_BZ, 2 * signs_Bh - 1, create_graph=True
                )
                draws.append(pulled_BZ.square().mean(0))
            squares.append(torch.stack(draws).mean(0))
        return torch.stack(squares)


def decorrelation(latents_BZ: Tensor, *, reduction: Reduction) -> Tensor:
    """Compute the distance of latents from uncorrelated with unit variance: ||cov(Z) - I||_F^2.

    Without this term a private latent may be replaced by itself plus any multiple of shared ones,
    which no penalty on the Jacobian's support detects.

    Args:
        latents_BZ: Latents; the covariance is the biased one of the batch.
        reduction: `sum` is the squared Frobenius norm; `mean` divides it by Z^2.

    >>> decorrelation(torch.tensor([[1.0, 1.0], [-1.0, -1.0]]), reduction="sum")
    tensor(2.)
    """
    num_samples, num_latents = latents_BZ.shape
    centred_BZ = latents_BZ - latents_BZ.mean(0)
    covariance_ZZ = centred_BZ.mT @ centred_BZ / num_samples
    identity_ZZ = torch.eye(num_latents, dtype=latents_BZ.dtype, device=latents_BZ.device)
    return _reduce((covariance_ZZ - identity_ZZ).square().sum(), num_latents**2, reduction)


def _directional(decoder: Decoder, latents_BZ: Tensor, direction_BZ: Tensor) -> Tensor:
    derivative_BH: Tensor = jvp(decoder, (latents_BZ,), (direction_BZ,))[1]
    return derivative_BH


def _reduce(total: Tensor, num_elements: int, reduction: Reduction) -> Tensor:
    _check_reduction(reduction)
    return total / num_elements if reduction == "mean" else total


def _check_reduction(reduction: str) -> None:
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}: choose sum or mean")


def _check_draw(name: str, num_drawn: int, size: int, what: str) -> None:
    if not 1 <= num_drawn <= size:
        raise ValueError(f"{name} is {num_drawn}: draw from 1 to {size}, the number of {what}")
