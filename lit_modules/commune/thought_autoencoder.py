"""Training of a codec on the states of frozen agents, and the structure of its decoder."""

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from jsonargparse.typing import ClosedUnitInterval, NonNegativeFloat
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from matplotlib.figure import Figure
from torch import Tensor
from torch.optim.lr_scheduler import OneCycleLR

from triptych.datamodules.commune.state_cache import StateCache
from triptych.lit_modules.commune.sharing_figure import draw_sharing
from triptych.lit_modules.commune.step_draws import DrawsByStep
from triptych.lit_modules.optimization import stepped
from triptych.lit_modules.trainer_parts import data_of, is_dry_run
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.commune.agent_state import StateConfig
from triptych.models.commune.agents import Agents
from triptych.models.commune.agents_config import AgentsConfig, build_agents
from triptych.models.commune.perceptron import Activation
from triptych.models.commune.thought_codec import EVERYONE, ThoughtCodec, ThoughtCodecConfig
from triptych.models.commune.thought_system import ThoughtSystem
from triptych.objectives.commune.jacobian import decorrelation, jacobian
from triptych.objectives.commune.jacobian_penalty import JacobianPenalty
from triptych.objectives.commune.private_thoughts import OutsideAdversary, SharedAdversary
from triptych.objectives.commune.structure.findings import Finding, Training, examine
from triptych.objectives.commune.structure.identifiability import (
    IdentifiableGroups,
    RankCheck,
    block_ranks,
    check_ranks,
    identifiable_groups,
)
from triptych.objectives.commune.structure.sharing import Sharing
from triptych.objectives.commune.structure.stability import stability_over_bootstraps
from triptych.objectives.commune.structure.state_evidence import StateEvidence, state_evidence
from triptych.objectives.commune.structure.support import (
    Statistic,
    agent_magnitude,
    binarize,
    element_magnitude,
    sample_agent_squares,
    widest_gap,
)

# Shapes: B batch, N questions, H dimensions of all agents' states, Z latents, K agents

LATENT_STATISTICS_ROWS = 8192
# The states' ranks and mutual predictability: an eigenproblem of this size.
EVIDENCE_ROWS = 1024
# Jacobians whose singular values are computed, and elements of those of single rows.
RANK_SAMPLES, RANK_ELEMENTS = 16, 2**24


@dataclass(frozen=True)
class CodecSizes:
    """Sizes of the codec; the remaining sizes are those of the agents' states.

    Args:
        num_latents: Z, the paper's n_z.
        encoder_hidden: Widths of the encoder's hidden layers; none: linear.
        decoder_hidden: Widths of the decoder's hidden layers; none: linear.
        activation: `leaky_relu` or `gelu`.
        private_per_agent: Number of latents per agent that are read from its state alone (the
            masked encoder, ours); the rest are read from all states. 0: no such latents, as in the
            paper.
        private_hidden: Widths of the hidden layers of encoders of private latents; none: linear.
            Adversaries minimise squared errors, so they detect changes in the mean of a private
            latent. A linear encoder cannot encode evidence in any other way.
    """

    num_latents: int = 32
    encoder_hidden: list[int] = field(default_factory=lambda: [128])
    decoder_hidden: list[int] = field(default_factory=lambda: [64])
    activation: Activation = "gelu"
    private_per_agent: int = 0
    private_hidden: list[int] = field(default_factory=list)

    def of(self, agents: Agents, state: StateConfig) -> ThoughtCodecConfig:
        """Return the codec's configuration for these states of agents.

        Raises:
            ValueError: if there are more private latents than latents.
        """
        owners = None
        if self.private_per_agent:
            owners = [k for k in range(len(agents)) for _ in range(self.private_per_agent)]
            if len(owners) >= self.num_latents:
                raise ValueError(
                    f"codec.private_per_agent is {self.private_per_agent}, which makes "
                    f"{len(owners)} private latents of {self.num_latents}: lower it, or raise "
                    "codec.num_latents, so that some are left to share"
                )
            owners += [EVERYONE] * (self.num_latents - len(owners))
        return ThoughtCodecConfig(
            [state.size(size) for size in agents.state_sizes],
            self.num_latents,
            list(self.encoder_hidden),
            list(self.decoder_hidden),
            self.activation,
            owners,
            agents.names,
            list(self.private_hidden),
        )


@dataclass(frozen=True)
class StructureConfig:
    """Settings for reading the structure off the decoder.

    Args:
        statistic: Statistic of the Jacobian's elements over samples and an agent's rows.
        threshold: Share of the largest magnitude above which a latent matters to an agent; null:
            the middle of the widest gap.
        num_samples: Held-out questions at which the Jacobian is evaluated.
        num_bootstraps: Bootstrap resamplings of them.

    Raises:
        ValueError: if a setting is out of range.
    """

    statistic: Statistic = "rms"
    threshold: float | None = None
    num_samples: int = 256
    num_bootstraps: int = 50

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold < 1:
            raise ValueError(
                f"structure.threshold is {self.threshold}: it is a share of the largest magnitude, "
                "from 0 to below 1; or null"
            )
        if self.num_samples < 1:
            raise ValueError(f"structure.num_samples is {self.num_samples}: set it to at least 1")
        if self.num_bootstraps < 0:
            raise ValueError(
                f"structure.num_bootstraps is {self.num_bootstraps}: set it to at least 0"
            )


class ThoughtAutoencoder(DrawsByStep):
    """Trains a codec on the cached states of frozen agents.

    The loss is ||x - decoder(z)||^2 (sum over dimensions, mean over samples) + penalty_weight
    penalty + decorrelation_weight ||cov(z) - I||_F^2, on z-scored states and latents of unit
    variance.

    Args:
        init_from: Exported folder of agents, or the experiment that trains them.
        agents: Pretrained agents, in place of `init_from`.
        state: The hidden state that is read.
        codec: Sizes of the codec.
        penalty: Penalty on the decoder's Jacobian; null: none. The paper's is
            `{norm: l1, reduction: sum}`.
        penalty_weight: lambda.
        decorrelation_weight: Weight of the decorrelation term; null: 1, or 0 where there are more
            latents than directions of the states or than samples of a batch, since they cannot be
            uncorrelated then and the term mixes agents' evidence.
        adversary_weight: Weight against an adversary that predicts private latents from shared
            ones; the encoder learns to hide them. Needs `codec.private_per_agent`.
        outsider_weight: Weight against an adversary that predicts an agent's private latents from
            the others' states, so that shared evidence moves to shared latents. Needs
            `codec.private_per_agent`.
        channel_noise: Standard deviation of noise that is added to shared latents before decoder
            and adversary read them, as `routing.noise` of the adapter does later.
        structure: Settings for reading the structure.
        learning_rate: Rate of Adam: the peak of one cycle, or constant.
        schedule: `one_cycle` or `constant`.
        penalty_ramp_share: Share of the steps over which the weights of the penalty and of the
            adversaries rise from 0.

    Raises:
        ValueError: if not exactly one of `init_from` and `agents` is given, or adversaries have no
            private latents.

    Source: 2510.20733; its authors are quoted with lambda 0.01, a learning rate of 1e-5 and
    batches of 128. Deviations: z-scores, unit variance, decorrelation, schedules, adversary.
    """

    headline_metrics = ("val/states/explained_share", "val/structure/*")

    def __init__(
        self,
        init_from: str | None = None,
        agents: AgentsConfig | None = None,
        state: StateConfig = StateConfig(),  # noqa: B008 (frozen)
        codec: CodecSizes = CodecSizes(),
        penalty: JacobianPenalty | None = None,
        penalty_weight: NonNegativeFloat = 0.3,
        decorrelation_weight: NonNegativeFloat | None = None,
        adversary_weight: NonNegativeFloat = 0.0,
        outsider_weight: NonNegativeFloat = 0.0,
        channel_noise: NonNegativeFloat = 0.0,
        structure: StructureConfig = StructureConfig(),
        learning_rate: NonNegativeFloat = 4e-3,
        schedule: Literal["one_cycle", "constant"] = "one_cycle",
        penalty_ramp_share: ClosedUnitInterval = 0.1,
    ) -> None:
        super().__init__()
        if (init_from is None) == (agents is None):
            raise ValueError(
                "model.init_args.init_from names trained agents and model.init_args.agents "
                "pretrained ones: give one of them"
            )
        if (adversary_weight or outsider_weight) and not codec.private_per_agent:
            raise ValueError(
                "model.init_args.adversary_weight and outsider_weight need latents that are "
                "private to begin with: set model.init_args.codec.private_per_agent"
            )
        team = Agents.load(init_from) if init_from is not None else build_agents(_given(agents))
        made = ThoughtCodec(codec.of(team, state))
        relevant_KZ = torch.ones(len(team), codec.num_latents, dtype=torch.bool)
        self.model = ThoughtSystem(team, state, made, relevant_KZ)
        self.penalty, self.penalty_weight = penalty, penalty_weight
        self.decorrelation_weight = decorrelation_weight
        self._decorrelation_weight = 1.0 if decorrelation_weight is None else decorrelation_weight
        self._evidence: StateEvidence | None = None
        self.structure = structure
        self.learning_rate, self.schedule = learning_rate, schedule
        self.penalty_ramp_share = penalty_ramp_share
        self.adversary_weight, self.outsider_weight = adversary_weight, outsider_weight
        owners = made.config.latent_owners or []
        self.channel_noise = channel_noise
        self.adversary = SharedAdversary(owners, EVERYONE) if adversary_weight else None
        self.outsider = (
            OutsideAdversary(owners, EVERYONE, made.state_sizes) if outsider_weight else None
        )
        self.findings: list[Finding] = []
        self.strict_loading = False  # frozen agents are in no checkpoint
        self._report: dict[str, Any] = {}
        self._magnitude_KZ = torch.zeros(0, dtype=torch.float32)

    @property
    def agents(self) -> Agents:
        """The agents that states are read from."""
        return self.model.agents

    @property
    def state(self) -> StateConfig:
        """The hidden state that is read from each agent."""
        return self.model.state

    def setup(self, stage: str) -> None:
        """Refuse a strategy that shards the codec.

        Raises:
            ValueError: if the strategy does so.
        """
        refuse_sharded(self.trainer, "ThoughtAutoencoder differentiates a whole codec")

    def on_fit_start(self) -> None:
        """Fit the mean and scale of the states, once; look at what they tell by themselves."""
        self.train()  # reading the agents' states has put them into eval mode
        cache: StateCache = data_of(self).caches["train"]
        codec = self.model.codec
        if not codec.standardizer.is_fitted:
            device = self.device
            codec.fit_statistics(batch.to(device) for batch in cache.batches())
        rows = range(min(EVIDENCE_ROWS, len(cache)))
        if len(rows) >= 4:
            scores_NH = codec.standardize(cache.rows(rows).to(self.device)).cpu()
            self._evidence = state_evidence(scores_NH, codec.state_sizes)
        self._choose_decorrelation()

    def _choose_decorrelation(self) -> None:
        """Leave the decorrelation term out where latents cannot be uncorrelated."""
        num_latents, num_batch = self.model.codec.config.num_latents, self._num_batch()
        rank = num_latents if self._evidence is None else self._evidence.rank
        if self.decorrelation_weight is not None or num_latents <= min(rank, num_batch - 1):
            return
        self._decorrelation_weight = 0.0
        rank_zero_info(
            f"decorrelation is off: {num_latents} latents cannot be uncorrelated on states of "
            f"{rank} directions, in batches of {num_batch} (model.init_args.decorrelation_weight)"
        )

    def _num_batch(self) -> int:
        size = getattr(data_of(self), "batch_size", None)
        return int(size) if size else LATENT_STATISTICS_ROWS

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Compute the loss of a batch of states."""
        codec = self.model.codec
        scores_BH = codec.standardize(batch["states"])
        latents_BZ = codec.encode_scores(scores_BH)
        arrived_BZ = self._send(latents_BZ)
        error = (codec.decoder(arrived_BZ) - scores_BH).square().sum(1).mean()
        loss: Tensor = error
        if self._decorrelation_weight:
            spread = decorrelation(latents_BZ, reduction="sum")
            self.log("train/decorrelation", spread.detach())
            loss = loss + self._decorrelation_weight * spread
        if self.penalty is not None and self.penalty_weight:
            value = self.penalty(codec.decoder, latents_BZ, codec.state_sizes)
            self.log("train/jacobian_penalty", value.detach())
            loss = loss + self._ramp() * self.penalty_weight * value
        if self.adversary is not None:
            game = self.adversary(arrived_BZ)
            self.log("train/adversary_error", game.found.detach())
            loss = loss + game.found + self._ramp() * self.adversary_weight * game.hiding
        if self.outsider is not None:
            game = self.outsider(latents_BZ, scores_BH)
            self.log("train/outsider_error", game.found.detach())
            loss = loss + game.found + self._ramp() * self.outsider_weight * game.hiding
        self.log("train/squared_error", error.detach(), prog_bar=True)
        return loss

    def _send(self, latents_BZ: Tensor) -> Tensor:
        """Add the channel's noise to shared latents."""
        if not self.channel_noise:
            return latents_BZ
        is_shared_Z = self.model.codec.may_matter().all(0)
        noise_BZ: Tensor = self.channel_noise * torch.randn_like(latents_BZ)
        return latents_BZ + noise_BZ * is_shared_Z.to(noise_BZ)

    def _ramp(self) -> float:
        steps = self.penalty_ramp_share * float(self.trainer.estimated_stepping_batches)
        return min(1.0, self.global_step / steps) if steps else 1.0

    def on_validation_epoch_start(self) -> None:
        """Fit the latents' statistics on many states, in place of a running mean over batches."""
        cache: StateCache = data_of(self).caches["train"]
        rows = range(min(LATENT_STATISTICS_ROWS, len(cache)))
        self.model.codec.fit_latent_statistics(cache.rows(rows).to(self.device))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        """Log the share of the states' variance that the codec reconstructs."""
        codec = self.model.codec
        scores_BH = codec.standardize(batch["states"])
        error = (codec.decoder(codec.encode_scores(scores_BH)) - scores_BH).square().mean()
        share = 1 - error / scores_BH.square().mean()
        self.log("val/states/explained_share", share, sync_dist=True, batch_size=len(scores_BH))

    def on_validation_epoch_end(self) -> None:
        """Read the structure off the decoder."""
        if self.trainer.sanity_checking:
            return
        cache: StateCache = data_of(self).caches["val"]
        rows = range(min(self.structure.num_samples, len(cache)))
        sharing = self._read_structure(cache.rows(rows).to(self.device))
        counts = torch.bincount(sharing.agreement, minlength=len(self.agents) + 1).tolist()
        for alpha, count in enumerate(counts):
            self.log(f"val/structure/latents_of_{alpha}_agents", float(count), sync_dist=True)
        gap = 1.0 if self._report["gap"] is None else min(self._report["gap"], 1e6)
        self.log("val/structure/gap", gap, sync_dist=True)
        self.log("val/structure/alarms", float(sum(f.is_alarm for f in self.findings)))

    @torch.no_grad()
    def _read_structure(self, states_NH: Tensor) -> Sharing:
        codec, config = self.model.codec, self.structure
        latents_NZ = codec.encode(states_NH)
        magnitude_HZ = element_magnitude(codec.decoder, latents_NZ, config.statistic)
        magnitude_KZ = agent_magnitude(magnitude_HZ, codec.state_sizes, config.statistic)
        threshold = widest_gap(magnitude_KZ) if config.threshold is None else config.threshold
        support = binarize(magnitude_KZ, threshold, relative=True)
        # A latent that is read from one agent alone is its own, whatever other decoders use.
        relevant_KZ = support.mask & codec.may_matter().to(support.mask.device)
        sharing = Sharing(relevant_KZ)
        squares_NKZ = sample_agent_squares(codec.decoder, latents_NZ, codec.state_sizes)
        stability = None
        if config.statistic == "rms" and config.num_bootstraps >= 2:
            stability = stability_over_bootstraps(
                squares_NKZ,
                threshold,
                relative=True,
                num_bootstraps=config.num_bootstraps,
                generator=torch.Generator(squares_NKZ.device).manual_seed(0),
            )
        groups, blocks, joint_rank, ranks = self._identify(latents_NZ, magnitude_HZ, relevant_KZ)
        self.findings = examine(
            sharing, support, groups, ranks, stability, self._evidence, self._training()
        )
        self.model.relevant_KZ.copy_(relevant_KZ)
        self._magnitude_KZ = magnitude_KZ.cpu()
        self._report = {
            "relative_threshold": threshold,
            "threshold": support.threshold,
            "gap": support.gap if support.separates else None,
            "gap_found": support.separates,
            "agreement": sharing.agreement.tolist(),
            "shared": sharing.shared,
            "private": sharing.private,
            "dead": sharing.dead,
            "identified": groups.identified,
            "identifiable_groups": [vars(block) for block in groups.blocks],
            "jacobian_rank": joint_rank,
            "jacobian_block_ranks": blocks,
            "shared_directions": sum(blocks) - joint_rank,
            "conditioning": ranks.conditioning,
            "spanning_share": ranks.spanning_share,
            "states": None if self._evidence is None else vars(self._evidence),
            "decorrelation_weight": self._decorrelation_weight,
            "bootstrap_jaccard": None if stability is None else stability.jaccard,
            "findings": [vars(finding) for finding in self.findings],
        }
        return sharing

    def _identify(
        self, latents_NZ: Tensor, magnitude_HZ: Tensor, relevant_KZ: Tensor
    ) -> tuple[IdentifiableGroups, list[int], int, RankCheck]:
        """Find groups of latents that can be told apart, and ranks of the Jacobian's blocks."""
        codec = self.model.codec
        sizes = torch.tensor(codec.state_sizes, dtype=torch.int64, device=relevant_KZ.device)
        is_own_HZ = relevant_KZ.repeat_interleave(sizes, 0)
        elements = binarize(magnitude_HZ, widest_gap(magnitude_HZ), relative=True).mask
        support_HZ = (elements & is_own_HZ).cpu()
        num_rows, num_latents = support_HZ.shape
        few_nHZ = jacobian(codec.decoder, latents_NZ[:RANK_SAMPLES]).cpu()
        blocks, joint = block_ranks(few_nHZ, codec.state_sizes)
        # A row spans its support over more samples than it has latents, so it takes all of them.
        most = max(1, RANK_ELEMENTS // (len(latents_NZ) * num_latents))
        rows = (
            torch.linspace(0, num_rows - 1, min(num_rows, most, 256), dtype=torch.float64)
            .long()
            .tolist()
        )
        parts = [jacobian(codec.decoder, part)[:, rows].cpu() for part in latents_NZ.split(8)]
        spans = check_ranks(torch.cat(parts), support_HZ[rows], values_of=few_nHZ)
        return identifiable_groups(support_HZ), blocks, joint, spans

    def _training(self) -> Training:
        norm = None if self.penalty is None or not self.penalty_weight else self.penalty.norm
        cache: StateCache = data_of(self).caches["train"]
        return Training(norm, len(cache), self._decorrelation_weight, self._num_batch())

    def on_train_end(self) -> None:
        """Write the report, and warn of alarms."""
        if not self.trainer.is_global_zero or not self._report:
            return
        for finding in self.findings:
            if finding.is_alarm and not is_dry_run(self):
                rank_zero_warn(f"{finding.name}: {finding.explanation}")
        folder = Path(self.trainer.default_root_dir)
        report = {k: v if v != math.inf else None for k, v in self._report.items()}
        (folder / "structure.json").write_text(json.dumps(report, indent=2) + "\n")

    def draw_figures(self) -> dict[str, Figure]:
        """Draw the structure, once there is one."""
        if not self._report:
            return {}
        relevant_KZ = self.model.relevant_KZ.cpu()
        return {"sharing": draw_sharing(self._magnitude_KZ, relevant_KZ, self.agents.names)}

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return the findings as rows of the summary table."""
        return [
            (("ALARM: " if finding.is_alarm else "") + finding.name, finding.explanation)
            for finding in self.findings
        ]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Leave the frozen agents out of the checkpoint."""
        for name in [n for n in checkpoint["state_dict"] if n.startswith("model.agents.")]:
            del checkpoint["state_dict"][name]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return Adam over the codec and the adversaries."""
        parts = {
            "codec": self.model.codec,
            "adversary": self.adversary,
            "outsider": self.outsider,
        }
        groups = [
            {"params": list(part.parameters()), "name": name}
            for name, part in parts.items()
            if part is not None
        ]
        optimizer = torch.optim.Adam(groups, self.learning_rate)
        if self.schedule == "constant":
            return optimizer
        total = int(self.trainer.estimated_stepping_batches)
        return stepped(optimizer, OneCycleLR(optimizer, self.learning_rate, total_steps=total))


def _given(agents: AgentsConfig | None) -> AgentsConfig:
    assert agents is not None
    return agents
