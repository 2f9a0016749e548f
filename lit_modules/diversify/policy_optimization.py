"""Reinforcement learning of a policy that keeps every good answer: MARA, or without it."""

import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.strategies import FSDPStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from triptych.lit_modules.diversify.experience_log import ExperienceLog
from triptych.lit_modules.diversify.policy_evaluation import PolicyEvaluation
from triptych.lit_modules.optimization import (
    ClipsValuesApart,
    build_adamw,
    optimizer_of_nothing,
    scheduled,
)
from triptych.lit_modules.trainer_parts import data_of, is_dry_run
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.diversify.policy import Policy
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.diversify.collapse_diagnosis import diagnose_settings
from triptych.objectives.diversify.experience import Experience, rows_of, unaugmented
from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.mara import Augmentation, Mara
from triptych.objectives.diversify.policy_loss import LossSum, PolicyLoss, PolicySamples, Rloo
from triptych.objectives.rewards.base import Reward

# Shapes: B completions, T completion positions

Prompts = Sequence[Mapping[str, Any]]
Schedule = Literal["constant", "cosine"]
_FOR_VALIDATION = 2**31


class PolicyOptimization(ClipsValuesApart, LightningModule):
    """Maximises E[R] - beta KL(policy, reference), with MARA's rewards in place of R or without.

    Every training step samples completions of a batch of prompts, scores them, and updates the
    policy on them, once or several times. The reference is the policy as it was at the start.

    A batch is a list of prompts, as `ChatPrompts` gives them. With several
    processes (DDP) the completions of a prompt stay on one of them; losses and logged means are
    over the completions of all. The randomness of sampling follows from seed, step and rank, so
    that a resumed run goes on as if it had never stopped.

    A policy with memory layers learns by its slots alone with the callback
    `SparseMemoryFinetuning`; learning rate and schedule of this
    module then mean nothing, and sampling counts as no read.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        reward: What is maximised; a completion it cannot score is left out and counted.
        init_from: Exported folder, or an experiment's config, which is then run first.
        policy: The model that learns: settings of a language model, or any `Policy` by its
            class_path. Null: the model of `init_from`, all of it.
        mara: Mode-anchored reward augmentation; null trains without it.
        loss: The policy loss by its class_path; null: RLOO.
        beta: Strength of the KL. 0: none, which is explained before training.
        kl: Which KL, estimated how, put where. Null: the reverse KL by k1 in the reward, or
            nothing beside a loss that contains the KL itself.
        num_samples: Completions of each prompt in a training step.
        updates_per_rollout: Optimizer steps on the completions of one training step; above 1 the
            loss's clipped ratios hold the policy near the one that sampled. `max_steps` and
            schedules count training steps, whatever this is.
        learning_rate: Peak learning rate of all but a memory's values.
        value_learning_rate: Of the values; null: as `learning_rate`.
        weight_decay: Decay of matrices and values.
        betas: Adam's.
        schedule: After warm-up, `constant`, or a `cosine` down to a tenth over the trainer's steps.
        warmup_steps: Steps of linear warm-up.
        eval_samples: k, completions of each held-out prompt in validation.
        eval_temperature: Temperature of these; training samples at 1.
        evaluate_first: Validate before the first step too, so that what training changed is seen.
        metrics: Further metrics of validation samples, by class_path: whatever takes the texts of
            each prompt (`text_diversity`, `embedding_diversity`, `novelty`, ...).
        num_tables: Completions of each held-out set shown in the table of samples.

    Attributes:
        experience: What the last training step sampled, for tables and traces.
        evaluation: The last validation.
        experience_log: What was counted and logged of the training steps.
        start_numbers: Log key -> value of the validation before the first step.

    Raises:
        ValueError: on settings that contradict each other or are out of range.

    Source: 2510.20817, algorithms 1 and 2; RLOO with the KL in the reward is the paper's setting.
    Deviations are those of `mara`, `kl` and `policy_loss`. Where a
    loss takes a mean over the batch for itself (`Reinforce`'s baseline, RLOO's normalisation) that
    is each process's own.
    """

    def __init__(
        self,
        vocab_size: int | None,
        reward: Reward,
        init_from: str | None = None,
        policy: CausalLMPolicyConfig | Policy | None = None,
        mara: Mara | None = None,
        loss: PolicyLoss | None = None,
        beta: float = 0.03,
        kl: KlPenalty | None = None,
        num_samples: int = 16,
        updates_per_rollout: int = 1,
        learning_rate: float = 1e-4,
        value_learning_rate: float | None = None,
        weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Schedule = "constant",
        warmup_steps: int = 0,
        eval_samples: int = 10,
        eval_temperature: float = 1.0,
        evaluate_first: bool = True,
        metrics: list[Metric] | None = None,
        num_tables: int = 16,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("num_samples", num_samples, 1),
            ("updates_per_rollout", updates_per_rollout, 1),
            ("learning_rate", learning_rate, 0),
            ("value_learning_rate", value_learning_rate, 0),
            ("weight_decay", weight_decay, 0),
            ("warmup_steps", warmup_steps, 0),
            ("eval_samples", eval_samples, 1),
        ):
            if value is not None and not least <= value < math.inf:
                raise ValueError(f"model.init_args.{name} is {value}: set it to at least {least}")
        if not eval_temperature > 0:
            raise ValueError(
                f"model.init_args.eval_temperature is {eval_temperature}: set it above 0"
            )
        if schedule not in get_args(Schedule):
            raise ValueError(f"model.init_args.schedule is {schedule!r}: choose constant or cosine")
        self.reward = reward
        self.mara = mara
        self.loss = loss or Rloo()
        self.beta = beta
        self.kl = kl if kl is not None or self.loss.contains_kl else KlPenalty()
        self._settings_findings = diagnose_settings(beta, self.loss, self.kl, mara)
        self.init_from = init_from
        self.policy = _policy(policy, init_from, vocab_size)
        self.num_samples = num_samples
        self.updates_per_rollout = updates_per_rollout
        self.learning_rate = learning_rate
        self.value_learning_rate = value_learning_rate
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.eval_samples = eval_samples
        self.eval_temperature = eval_temperature
        self.evaluate_first = evaluate_first
        self.evaluation = PolicyEvaluation(reward, metrics or [], num_tables)
        self.experience: Experience | None = None
        self.start_numbers: dict[str, float] = {}
        self.sample_rows: list[dict[str, Any]] = []
        self.experience_log = ExperienceLog(self, mara, beta)
        self._update = 0
        self._seed = 0

    @property
    def model(self) -> nn.Module | None:
        """The transformers model, which is exported; None if the policy is no language model."""
        return self.policy.model if isinstance(self.policy, CausalLMPolicy) else None

    @property
    def mode_counts(self) -> dict[str, dict[str, Counter[str]]]:
        """Answers of the last validation: set -> category -> answer -> count, on this rank."""
        return self.evaluation.mode_counts

    def export_state_dict(self) -> dict[str, Tensor]:
        """The weights of `model`, with adapters merged."""
        assert isinstance(self.policy, CausalLMPolicy)
        return self.policy.export_state_dict()

    # -- a training step, as in the paper's algorithm ---------------------------------------------

    def training_step(self, batch: Prompts, batch_idx: int) -> Tensor:
        """Sample, score, augment; then one update (of `updates_per_rollout`) on the outcome."""
        if self._update == 0:
            rollout = self.sample(batch, self.trainer.fit_loop.total_batch_idx)
            self.reward.begin(rollout)
            self.experience = self.augment(self.score(rollout))
        experience = self.experience
        assert experience is not None
        log_prob_BT = self.policy.token_log_prob(experience.rollout)
        if experience.old_log_prob_BT is None:
            experience.old_log_prob_BT = log_prob_BT.detach()
            self.experience_log.note(experience, type(self.reward).__name__)
        loss = self.loss(self.penalised(experience, log_prob_BT))
        return self._step_loss(loss)

    def sample(self, prompts: Prompts, step: int) -> Rollout:
        """Completions of each prompt; what is drawn follows from seed, step and rank."""
        generator = self._generator(step, self.trainer.global_rank)
        return self.policy.sample(prompts, self.num_samples, generator)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Experience:
        """Rewards, and log-probabilities under the reference.

        Raises:
            ValueError: if the reward gives another number of values than there are completions.
        """
        reference_BT = self.policy.reference_token_log_prob(rollout)  # a reward may be at work
        scores = self.reward(rollout)
        nothing = unaugmented(scores.reward_B, reference_BT.sum(-1))
        anchor_reward_B = torch.full_like(scores.reward_B, torch.nan)
        return Experience(rollout, scores, reference_BT, nothing, anchor_reward_B)

    @torch.no_grad()
    def augment(self, experience: Experience) -> Experience:
        """Equation 11: completions at the threshold get their anchor's reward and level."""
        if self.mara is None:
            return experience
        columns = [
            experience.reward,
            experience.reference_log_prob,
            experience.rollout.group_B,
            experience.rollout.num_tokens,
        ]
        count, first = len(experience.rollout), 0
        needs_all = self.mara.percentile is not None or self.mara.scope != "group"
        if needs_all and self._world_size > 1:
            first = count * self.trainer.global_rank
            columns = [self._gathered(column) for column in columns]
            # Groups of different ranks are different.
            columns[2] += torch.arange(len(columns[2]), device=self.device) // count * count
        reward_B, reference_B, group_B, num_tokens_B = columns
        augmentation = self.mara.augment(
            reward_B,
            reference_B,
            group_B,
            self.beta,
            step=self.trainer.global_step,
            num_tokens_B=num_tokens_B,
        )
        own = rows_of(augmentation, first, count)
        anchor_reward_B = reward_B[own.anchor_B.clamp_min(0)].masked_fill(
            own.anchor_B < 0, torch.nan
        )
        return replace(
            experience, augmentation=own, anchor_reward_B=anchor_reward_B, first_row=first
        )

    def penalised(self, experience: Experience, log_prob_BT: Tensor) -> PolicySamples:
        """The augmented rewards with the KL taken off, or beside them: what a loss sees.

        Args:
            experience: With the log-probabilities of the policy that sampled.
            log_prob_BT: Of the policy that learns, differentiable.
        """
        old_BT = experience.old_log_prob_BT
        assert old_BT is not None
        augmentation: Augmentation = experience.augmentation
        reward_B, penalty = augmentation.reward_B, None
        if self.kl is not None and self.beta > 0:
            rest = (
                experience.reference_log_prob_BT,
                experience.rollout.token_mask_BT,
                augmentation.reference_log_prob_B,
            )
            reward_B = reward_B - self.beta * self.kl.in_reward(old_BT, *rest)
            penalty = self.kl.in_loss(log_prob_BT, *rest, old_BT if self._update else None)
            penalty = None if penalty is None else self.beta * penalty
        return PolicySamples(
            log_prob_BT=log_prob_BT,
            token_mask_BT=experience.rollout.token_mask_BT,
            reward_B=reward_B,
            group_B=experience.rollout.group_B,
            old_log_prob_BT=old_BT if self._update else None,
            reference_log_prob_B=augmentation.reference_log_prob_B,
            beta=self.beta,
            penalty=penalty,
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Step `updates_per_rollout` times on what was sampled once."""
        for update in range(self.updates_per_rollout):
            self._update = update
            optimizer.step(closure=optimizer_closure)
        self._update = 0

    def _step_loss(self, loss: LossSum) -> Tensor:
        count = loss.count
        if self._world_size > 1:
            count = self.trainer.strategy.reduce(count.clone().double(), reduce_op="sum")
        for name, value in loss.numbers.items():
            self.log(f"train/{name}", value.float(), sync_dist=self._world_size > 1)
        return loss.mean(count, self._world_size)

    def _generator(self, step: int, rank: int, purpose: int = 0) -> torch.Generator:
        # Words of 32 bits that are well mixed, also for seeds and steps that follow each other.
        mixed = np.random.SeedSequence([self._seed, step, rank, purpose]).generate_state(2)
        generator = torch.Generator(device=self.device)
        return generator.manual_seed(int(mixed[0]) << 31 ^ int(mixed[1]))

    def _gathered(self, column_B: Tensor) -> Tensor:
        """The rows of all ranks, one after another."""
        ranks: Any = self.all_gather(column_B)
        rows: Tensor = ranks.flatten(0, 1)
        return rows

    @property
    def _world_size(self) -> int:
        return int(self.trainer.world_size)

    # -- what is said about it --------------------------------------------------------------------

    def summary_rows(self) -> list[tuple[str, str]]:
        """Rows of the table at the end: what training changed, and what could not be scored."""
        rows = [
            (f"before training: {name}", f"{value:,.4g}")
            for name, value in self.start_numbers.items()
        ]
        for name, bits in self.evaluation.entropy_over_prompts().items():
            rows.append((f"{name}: entropy of the answers, all prompts (bits)", f"{bits:.4f}"))
        return rows + self.experience_log.summary_rows()

    # -- before and after -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Give the policy the data's tokenizer.

        Raises:
            ValueError: if the strategy shards the policy, or settings do not go together.
        """
        if isinstance(self.trainer.strategy, FSDPStrategy):
            raise ValueError(
                "PolicyOptimization samples from whole models, but FSDP shards them: use DDP "
                "(configs/hardware/ddp.yaml)"
            )
        if self.updates_per_rollout > 1 and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"model.init_args.updates_per_rollout is {self.updates_per_rollout} and "
                f"trainer.accumulate_grad_batches {self.trainer.accumulate_grad_batches}: set one "
                "of them to 1"
            )
        data = data_of(self)
        if isinstance(self.policy, CausalLMPolicy) and hasattr(data, "tokenizer"):
            self.policy.use_tokenizer(data.tokenizer)

    def on_fit_start(self) -> None:
        """Say what the settings must lead to."""
        self._seed = torch.initial_seed()
        # Lightning wonders about a policy that is in eval mode, as it is to be.
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
        self.experience_log.tell(self._settings_findings)

    def on_train_start(self) -> None:
        """Validate once before the first step, outside of Lightning's own counting."""
        is_first = self.trainer.global_step == 0 and not is_dry_run(self)
        if self.evaluate_first and is_first and self.trainer.limit_val_batches:
            self.evaluation.reset(self.device)
            for number, loader in enumerate(self._validation_loaders()):
                for batch_idx, batch in enumerate(loader):
                    self.validation_step(batch, batch_idx, number)
            numbers = self.evaluation.compute()
            self.start_numbers = {name: float(value) for name, value in numbers.items()}
            if self.trainer.is_global_zero:
                for logger in self.trainer.loggers:
                    logger.log_metrics(self.start_numbers, step=0)
        self.experience_log.restart_clock()

    def on_train_end(self) -> None:
        """Warn of a threshold that was never reached in a short run."""
        if not is_dry_run(self):
            self.experience_log.warn_of_threshold()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what was counted."""
        checkpoint["policy_optimization"] = {
            "experience_log": self.experience_log.state_dict(),
            "start_numbers": self.start_numbers,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting."""
        state = checkpoint["policy_optimization"]
        self.experience_log.load_state_dict(state["experience_log"])
        self.start_numbers = state["start_numbers"]

    # -- validation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self.evaluation.reset(self.device)

    @torch.no_grad()
    def validation_step(self, batch: Prompts, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Sample k completions of held-out prompts, with the same noise each time; score them."""
        loader = self._validation_loaders()[dataloader_idx]
        self.evaluation.prepare(loader.name, batch[0])
        prompts = [row for row in batch if not row.get("is_filler")]
        if not prompts:
            return
        place = batch_idx * 1000 + dataloader_idx
        generator = self._generator(place, self.trainer.global_rank, _FOR_VALIDATION)
        options = {} if self.eval_temperature == 1 else {"temperature": self.eval_temperature}
        rollout = self.policy.sample(prompts, self.eval_samples, generator, **options)
        experience = self.score(rollout)
        if self.mara is not None and self.mara.scope == "group" and self.mara.percentile is None:
            experience = self.augment(experience)
        self.evaluation.add(loader.name, experience)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's numbers and refresh the table of samples."""
        for name, value in self.evaluation.compute().items():
            # Equal on every rank already; saying so again spares a warning of Lightning.
            self.log(name, value, sync_dist=True)
        self.sample_rows = self.evaluation.samples
        self.experience_log.restart_clock()

    def _validation_loaders(self) -> Sequence[Any]:
        loaders = self.trainer.val_dataloaders or data_of(self).val_dataloader()
        return loaders if isinstance(loaders, Sequence) else [loaders]

    # -- optimization -----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """AdamW over whatever learns, warm-up and schedule.

        Raises:
            ValueError: if nothing learns, or the cosine has no end.
        """
        if not any(parameter.requires_grad for parameter in self.policy.parameters()):
            return optimizer_of_nothing(self)
        rate = self.learning_rate
        optimizer = build_adamw(
            self.policy,
            rate,
            rate if self.value_learning_rate is None else self.value_learning_rate,
            self.weight_decay,
            self.weight_decay,
            self.betas,
        )
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)


def _policy(
    policy: CausalLMPolicyConfig | Policy | None, init_from: str | None, vocab_size: int | None
) -> Policy:
    if isinstance(policy, Policy):
        if init_from is not None:
            raise ValueError(
                "model.init_args.init_from is set, and model.init_args.policy is a policy of its "
                "own: leave one of them out"
            )
        return policy
    config = policy or CausalLMPolicyConfig()
    if init_from is not None:
        if config.init_from is not None:
            raise ValueError(
                "both model.init_args.init_from and model.init_args.policy.init_from are set: "
                "leave the second out"
            )
        config = replace(config, init_from=init_from)
    if config.init_from is None and config.base is None:
        raise ValueError(
            "there is no model to start from: set model.init_args.init_from (an exported folder, "
            "or an experiment's .yaml), or model.init_args.policy.base"
        )
    if vocab_size is None:
        raise ValueError(
            "a language model policy needs data with a tokenizer, such as "
            "triptych.datamodules.diversify.chat_prompts.ChatPrompts"
        )
    return build_policy(config, vocab_size)
