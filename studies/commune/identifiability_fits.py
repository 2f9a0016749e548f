"""One fit of the identifiability study: data of a seed, best restart, and metrics."""

import time
import warnings
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.datamodules.commune.synthetic_thoughts import Kind, SyntheticThoughts, make_thoughts
from triptych.metrics.commune.disentanglement import BlockR2, MeanCorrelation
from triptych.models.commune.thought_codec import ThoughtCodec, ThoughtCodecConfig
from triptych.objectives.commune.jacobian_penalty import JacobianPenalty
from triptych.objectives.commune.structure.matching import correlations, match_latents
from triptych.objectives.commune.structure.sharing import routing_accuracy
from triptych.objectives.commune.structure.support import (
    agent_magnitude,
    binarize,
    element_magnitude,
    widest_gap,
)
from triptych.studies.commune.codec_training import CodecObjective, train_codec
from triptych.studies.commune.linear_codec_fit import (
    WhitenedStates,
    draw_plain,
    fit_rotation,
    set_linear_codec,
)

# Shapes: N samples, H state dimensions of all agents, Z latents

# `plain autoencoder` has neither the penalty nor the decorrelation.
Way = Literal["penalty", "decorrelation alone", "plain autoencoder", "FastICA"]
NUM_TEST, NUM_JACOBIANS = 4000, 256
FIRST_SCALE = 3.0  # see `train_codec`


@dataclass(frozen=True)
class Problem:
    """A data generator of a given size, and the settings of the codec.

    Args:
        kind: Argument of `make_thoughts`.
        group_sizes: Argument of `make_thoughts`.
        state_size: Argument of `make_thoughts`.
        num_samples: Samples for the fit; `NUM_TEST` further samples are held out.
        weight: Weight of the penalty, a sum over elements or groups.
        decoder_hidden: Width of the decoder's hidden layer; 0: linear, fitted by linear algebra.
        num_steps: Adam steps of a nonlinear decoder.
        learning_rate: Learning rate of Adam.
    """

    kind: Kind
    group_sizes: tuple[int, int, int]
    state_size: int
    num_samples: int
    weight: float
    decoder_hidden: int = 0
    num_steps: int = 0
    learning_rate: float = 4e-3

    @property
    def size(self) -> int:
        """Number of latents."""
        return sum(self.group_sizes)

    @property
    def name(self) -> str:
        """Name in tables."""
        return f"{self.kind.replace('_', ' ')}, {self.size} latents"


@dataclass(frozen=True)
class Fit:
    """The work of one process.

    Args:
        problem: Problem to fit.
        way: Objective, or FastICA (linear problems only).
        seed: Seed of the data.
        num_restarts: Number of fits; the one with the lowest objective counts.
    """

    problem: Problem
    way: Way
    seed: int
    num_restarts: int

    def key(self) -> dict[str, Any]:
        """Return all settings that the numbers depend on."""
        return asdict(self)


def run_fit(fit: Fit) -> dict[str, Any]:
    """Fit, and measure on held-out samples.

    Returns:
        `mcc` and `spearman_mcc`; `routing`: share of right (agent, latent) pairs; `diagonal` and
        `off_diagonal`: smallest diagonal and largest other entry of the block R^2 `block_r2`;
        `objective` of the chosen restart and `objectives` of all; `seconds` of all restarts.
    """
    problem = fit.problem
    number = problem.num_samples + NUM_TEST
    thoughts = make_thoughts(
        problem.kind, problem.group_sizes, problem.state_size, number, fit.seed
    )
    states_NH = thoughts.states_NH[: problem.num_samples]
    began = time.perf_counter()
    if problem.decoder_hidden:
        candidates = [
            _train(problem, fit, states_NH, restart) for restart in range(fit.num_restarts)
        ]
    else:
        candidates = _fit_linear(problem, fit, states_NH)
    seconds = time.perf_counter() - began
    objective, codec = min(candidates, key=lambda candidate: candidate[0])
    return {
        **measure(codec, thoughts, problem.num_samples),
        "objective": objective,
        "objectives": [value for value, _ in candidates],
        "seconds": seconds,
    }


@torch.no_grad()
def measure(codec: ThoughtCodec, thoughts: SyntheticThoughts, num_fitted: int) -> dict[str, Any]:
    """Measure how well a codec recovers latents, on samples after the first `num_fitted`."""
    latents_NZ = codec.eval().encode(thoughts.states_NH)
    is_held_out_N = torch.arange(len(latents_NZ)) >= num_fitted
    true, recovered = thoughts.latents_NZ[is_held_out_N], latents_NZ[is_held_out_N]
    num_latents = true.shape[1]
    pearson = MeanCorrelation(num_latents, num_latents)
    spearman = MeanCorrelation(num_latents, num_latents, rank_among=(true, recovered))
    blocks = BlockR2(thoughts.groups_Z)
    pearson.update(true, recovered)
    spearman.update(true, recovered)
    blocks.update(thoughts.latents_NZ, latents_NZ, is_held_out_N)
    block_r2 = blocks.compute()
    off_diagonal = block_r2[~torch.eye(len(block_r2), dtype=torch.bool)]
    # The Jacobian of a linear decoder is constant.
    num_looked_at = NUM_JACOBIANS if codec.config.decoder_hidden else 1
    magnitude_HZ = element_magnitude(codec.decoder, recovered[:num_looked_at], "rms")
    magnitude_KZ = agent_magnitude(magnitude_HZ, codec.state_sizes, "rms")
    support = binarize(magnitude_KZ, widest_gap(magnitude_KZ), relative=True)
    order = match_latents(correlations(true, recovered))
    return {
        "mcc": float(pearson.compute()),
        "spearman_mcc": float(spearman.compute()),
        "routing": routing_accuracy(support.mask, thoughts.relevant, order),
        "routing_gap": support.gap,
        "diagonal": float(block_r2.diagonal().min()),
        "off_diagonal": float(off_diagonal.max()),
        "block_r2": block_r2.tolist(),
    }


def objective_of(problem: Problem, way: Way) -> CodecObjective:
    """Return the objective of a way."""
    norm: Literal["group", "l1"] = "group" if problem.decoder_hidden else "l1"
    weight = problem.weight if way == "penalty" else 0.0
    decorrelation_weight = 0.0 if way == "plain autoencoder" else 1.0
    return CodecObjective(JacobianPenalty("sum", norm), weight, decorrelation_weight)


def _train(
    problem: Problem, fit: Fit, states_NH: Tensor, restart: int
) -> tuple[float, ThoughtCodec]:
    torch.manual_seed(1000 * fit.seed + restart)
    width = problem.decoder_hidden
    codec = _new_codec(problem, [width, width], [width])
    codec.fit_statistics(states_NH)
    scores_NH = codec.standardize(states_NH)
    objective = objective_of(problem, fit.way)
    train_codec(
        codec,
        scores_NH,
        objective,
        problem.num_steps,
        problem.learning_rate,
        first_scale=FIRST_SCALE,
    )
    codec.fit_latent_statistics(states_NH)
    with torch.no_grad():
        return float(objective(codec.eval(), scores_NH)), codec


def _fit_linear(problem: Problem, fit: Fit, states_NH: Tensor) -> list[tuple[float, ThoughtCodec]]:
    first = _new_codec(problem, [], [])
    first.fit_statistics(states_NH)
    scores_NH = first.standardize(states_NH)
    whitened = WhitenedStates(scores_NH, sum(problem.group_sizes))
    objective = objective_of(problem, fit.way)
    candidates = []
    for restart in range(fit.num_restarts):
        seed = 1000 * fit.seed + restart
        if fit.way == "FastICA":
            rotation_ZZ = _fast_ica(whitened.whiten(scores_NH), seed)
            decoder_HZ = whitened.mix_HZ @ rotation_ZZ.mT
        elif fit.way == "plain autoencoder":
            rotation_ZZ, decoder_HZ = draw_plain(whitened.mix_HZ, seed)
        else:
            rotation_ZZ, decoder_HZ = fit_rotation(whitened.mix_HZ, objective.weight, seed)
        codec = _new_codec(problem, [], [])
        codec.standardizer.load_state_dict(first.standardizer.state_dict())
        set_linear_codec(codec, rotation_ZZ @ whitened.filter_ZH, decoder_HZ, states_NH)
        with torch.no_grad():
            candidates.append((float(objective(codec, scores_NH)), codec))
        if fit.way == "FastICA":
            break  # FastICA minimises another objective, so its first fit counts
    return candidates


def _new_codec(problem: Problem, encoder: list[int], decoder: list[int]) -> ThoughtCodec:
    sizes = [problem.state_size, problem.state_size]
    return ThoughtCodec(ThoughtCodecConfig(sizes, sum(problem.group_sizes), encoder, decoder))


def _fast_ica(white_NZ: Tensor, seed: int) -> Tensor:
    try:
        from sklearn.decomposition import FastICA
        from sklearn.exceptions import ConvergenceWarning
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "FastICA comes from scikit-learn, one of the extra `peers`: run `make install`"
        ) from error
    ica = FastICA(whiten=False, max_iter=200, tol=1e-3, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the result of 200 turns is used
        # float64: with many latents float32 gives negative eigenvalues, and FastICA fails.
        ica.fit(white_NZ.double().numpy())
    left_ZZ, _, right_ZZ = torch.linalg.svd(torch.from_numpy(ica.components_).float())
    rotation_ZZ: Tensor = left_ZZ @ right_ZZ
    return rotation_ZZ
