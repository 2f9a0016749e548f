"""Reinforcement learning of a policy, with mode-anchored rewards (MARA) or without."""

import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from lightning.pytorch import LightningModule
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.optim import Optimizer

from triptych.lit_modules.adapter_checkpoints import leave_base_out, put_base_back
from triptych.lit_modules.diversify.accumulated_mean import AccumulatesExactly
from triptych.lit_modules.diversify.collecting import Collecting, augmented
from triptych.lit_modules.diversify.experience_log import ExperienceLog
from triptych.lit_modules.diversify.further_terms import FurtherTerms
from triptych.lit_modules.diversify.policy_evaluation import PolicyEvaluation
from triptych.lit_modules.diversify.starting_policy import starting_policy
from triptych.lit_modules.diversify.step_clock import StepClock
from triptych.lit_modules.optimization import (
    ClipsValuesApart,
    build_adamw,
    optimizer_of_nothing,
    scheduled,
)
from triptych.lit_modules.trainer_parts import data_of, is_dry_run
from triptych.metrics.diversify.prompt_metric import PromptMetric
from triptych.metrics.sharded_strategies import refuse_sharded
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig
from triptych.models.diversify.policy import Policy
from triptych.models.diversify.rollout import Rollout
from triptych.models.seeded_generator import seeded_generator
from triptych.objectives.diversify.collapse_diagnosis import diagnose_settings
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.group_filter import GroupFilter
from triptych.objectives.diversify.importance import importance_weight
from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.overlong import Overlong
from triptych.objectives.diversify.policy_loss import LossSum, PolicyLoss, PolicySamples, Rloo
from triptych.objectives.diversify.rivals.entropy_bonus import EntropyBonus
from triptych.objectives.diversify.rivals.rehearsal import Rehearsal
from triptych.objectives.rewards.base import Reward, Scores
from triptych.protocols import HasPrompts, HasTokenizer

# Shapes: B completions, T completion positions

Prompts = Sequence[Mapping[str, Any]]
Schedule = Literal["constant", "cosine"]
_FOR_VALIDATION, _FOR_REFERENCE = 2**31, 2**31 + 1


class PolicyOptimization(ClipsValuesApart, AccumulatesExactly, LightningModule):
    """Maximises E[R] - beta KL(policy, reference), where MARA may replace the rewards R.

    Every training step samples completions of a batch of prompts, scores them, and updates the
    policy on them, once or several times. The reference is the initial policy.

    A batch is a list of prompts, as `ChatPrompts` gives them. With several processes (DDP) all
    completions of a prompt stay on one process; losses and logged means run over the completions of
    all processes. The randomness of sampling follows from seed, step and rank, so a resumed run is
    equal to an uninterrupted one.

    With the callback `SparseMemoryFinetuning` a policy with memory layers only learns slots. The
    learning rate and schedule of this module are then not used, and sampling counts as no read.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        reward: The reward to maximise. A completion that it cannot score is left out and counted.
        init_from: Exported folder, or an experiment's config, which is then run first.
        policy: The model to train: settings of a language model, or any `Policy` by its
            class_path. Null: the whole model of `init_from`.
        mara: Mode-anchored reward augmentation; null trains without it.
        loss: The policy loss by its class_path; null: RLOO.
        beta: Strength of the KL. 0 means none; its effect is then explained before training.
        kl: Direction, estimator and place of the KL. Null: the reverse KL by k1 in the reward, or
            none with a loss that contains the KL itself.
        num_samples: Completions of each prompt in a training step.
        updates_per_rollout: Optimizer steps on the completions of one training step. Above 1 the
            clipped ratios of the loss keep the policy near the one that sampled. `max_steps` and
            schedules always count training steps.
        learning_rate: Peak learning rate of all parameters but a memory's values.
        value_learning_rate: Peak learning rate of the values; null: as `learning_rate`.
        weight_decay: Decay of matrices and values.
        betas: Betas of Adam.
        schedule: After warm-up, `constant`, or a `cosine` down to a tenth over the trainer's steps.
        warmup_steps: Steps of linear warm-up.
        importance_threshold: A completion gets an importance weight if a token's log-probability in
            scoring differs from that in sampling by more than this, in nats. In half precision they
            differ by some hundredths, in float32 by 1e-5. Null: never.
        importance_cap: Largest importance weight.
        eval_samples: k, completions of each held-out prompt in validation.
        eval_temperature: Sampling temperature in validation; training samples at 1.
        evaluate_first: Validate before the first step too, to show the effect of training.
        metrics: Further metrics of validation samples, by class_path (`text_diversity`,
            `embedding_diversity`, `novelty`, or your own `PromptMetric`).
        num_tables: Completions of each held-out set shown in the table of samples.
        stop_after_failures: Stop with the reward's own error if it fails on every completion of so
            many steps in a row, or of the first step; null: never.
        entropy_bonus: Bonus for the entropy of the next token; null: none.
        rehearsal: Rehearses what the reference does right, in place of the reinforcement of
            prompts that it solves; null: none.
        group_filter: Drops or samples again groups whose rewards are all equal; null: keeps them.
        overlong: Penalises or leaves out completions near the length limit; null: neither.
        right_reward: Rewards of at least this are right in pass@k, maj@k and the numbers of
            different right answers; null: 1 if the reward is an `AnswerInSet`, else no pass@k.

    Attributes:
        experience: The completions of the last training step, for tables and traces.
        evaluation: The last validation.
        experience_log: Logs and counts of the training steps.
        start_numbers: Log key -> value of the validation before the first step.

    Raises:
        ValueError: on settings that contradict each other or are out of range.

    Source: 2510.20817, algorithms 1 and 2; RLOO with the KL in the reward is the paper's setting.
    Deviations are those of `mara`, `kl` and `policy_loss`. A loss that takes a mean over the batch
    (`Reinforce`'s baseline, RLOO's normalisation) takes it over the batch of each process.
    """

    headline_metrics: tuple[str, ...] = (
        "val/*/answer_share/*",
        "val/*/mode_entropy_bits",
        "val/*/reward",
    )

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
        num_samples: PositiveInt = 16,
        updates_per_rollout: PositiveInt = 1,
        learning_rate: NonNegativeFloat = 1e-4,
        value_learning_rate: NonNegativeFloat | None = None,
        weight_decay: NonNegativeFloat = 0.0,
        betas: tuple[float, float] = (0.9, 0.999),
        schedule: Schedule = "constant",
        warmup_steps: NonNegativeInt = 0,
        importance_threshold: NonNegativeFloat | None = 1e-3,
        importance_cap: PositiveFloat = 2.0,
        eval_samples: PositiveInt = 10,
        eval_temperature: PositiveFloat = 1.0,
        evaluate_first: bool = True,
        metrics: list[PromptMetric] | None = None,
        num_tables: NonNegativeInt = 16,
        stop_after_failures: PositiveInt | None = 3,
        entropy_bonus: EntropyBonus | None = None,
        rehearsal: Rehearsal | None = None,
        group_filter: GroupFilter | None = None,
        overlong: Overlong | None = None,
        right_reward: float | None = None,
    ) -> None:
        super().__init__()
        self.reward = reward
        self.mara = mara
        self.loss = loss or Rloo()
        self.beta = beta
        self.kl = kl if kl is not None or self.loss.contains_kl else KlPenalty()
        self._settings_findings = diagnose_settings(
            beta, self.loss, self.kl, mara, num_samples=num_samples
        )
        self.init_from = init_from
        self.policy = starting_policy(policy, init_from, vocab_size)
        self.num_samples = num_samples
        self.updates_per_rollout = updates_per_rollout
        self.learning_rate = learning_rate
        self.value_learning_rate = (
            learning_rate if value_learning_rate is None else value_learning_rate
        )
        self.weight_decay = weight_decay
        self.betas = (betas[0], betas[1])
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.importance_threshold = importance_threshold
        self.importance_cap = importance_cap
        self.eval_samples = eval_samples
        self.eval_temperature = eval_temperature
        self.evaluate_first = evaluate_first
        self.evaluation = PolicyEvaluation(
            reward, metrics or [], num_tables, right_reward, eval_samples
        )
        self.experience: Experience | None = None
        self.start_numbers: dict[str, float] = {}
        self.sample_rows: list[dict[str, Any]] = []
        self.experience_log = ExperienceLog(
            self, mara, beta, importance_threshold, stop_after_failures
        )
        self.collect = Collecting(self, group_filter, overlong)
        self.terms = FurtherTerms(self, entropy_bonus, rehearsal)
        self.clock = StepClock()
        self._seed = 0

    @property
    def model(self) -> nn.Module | None:
        """The transformers model, for exports; None if the policy is not a language model."""
        return self.policy.model if isinstance(self.policy, CausalLMPolicy) else None

    @property
    def max_new_tokens(self) -> int | None:
        """Tokens of the longest reply, for exports; None if the policy is not a language model."""
        return self.policy.max_new_tokens if isinstance(self.policy, CausalLMPolicy) else None

    @property
    def mode_counts(self) -> dict[str, dict[str, Counter[str]]]:
        """Answers of the last validation: set -> category -> answer -> count, on this rank."""
        return self.evaluation.mode_counts

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of `model`, with adapters merged."""
        assert isinstance(self.policy, CausalLMPolicy)
        return self.policy.export_state_dict()

    # -- a training step, as in the paper's algorithm ---------------------------------------------

    def training_step(self, batch: Prompts, batch_idx: int) -> Tensor:
        """Sample, score, augment; then take an update (of `updates_per_rollout`) on the result."""
        if self.experience is None or self._is_used_up(self.experience):
            self.experience = self.collect(batch, self.trainer.fit_loop.total_batch_idx)
            self.terms.prepare(self.experience, batch)
        experience = self.experience
        with self.clock("scoring"):
            log_prob_BT, entropy_BT = self.terms.score(experience.rollout)
        if experience.old_log_prob_BT is None:
            experience.old_log_prob_BT = log_prob_BT.detach()
            self.experience_log.note(experience, type(self.reward).__name__)
        inputs = self.loss_inputs(experience, log_prob_BT)
        loss = self._step_loss(self.loss(inputs)) + self.terms.loss(inputs, entropy_BT)
        experience.num_updates += 1
        return loss

    def _is_used_up(self, experience: Experience) -> bool:
        return bool(experience.num_updates == self.updates_per_rollout)

    def sample(self, prompts: Prompts, step: int, number: int = 0) -> Rollout:
        """Sample completions of each prompt; the draw follows from seed, step, number and rank."""
        generator = self._generator(step, self.trainer.global_rank, number)
        return self.policy.sample(prompts, self.num_samples, generator)

    def sample_reference(self, prompts: Prompts, num_samples: int, number: int) -> Experience:
        """Sample and score completions of the reference; the draw follows from seed and number."""
        generator = self._generator(number, 0, _FOR_REFERENCE)
        with self.clock("generation"):
            rollout = self.policy.reference_sample(prompts, num_samples, generator)
        return self.score(rollout)

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Experience:
        """Compute rewards, and log-probabilities under the reference.

        Raises:
            ValueError: if the reward returns another number of values than completions.
        """
        with self.clock("scoring"):
            reference_BT = self.policy.reference_token_log_prob(rollout)  # while a reward may work
        with self.clock("reward"):
            scores = self.scores_of(rollout)
        return Experience(rollout, scores, reference_BT)

    def scores_of(self, rollout: Rollout) -> Scores:
        """Score completions by the reward; a subclass may get the scores elsewhere."""
        return self.reward(rollout)

    @torch.no_grad()
    def augment(self, experience: Experience) -> Experience:
        """Apply equation 11: completions at the threshold get their anchor's reward and level."""
        return experience if self.mara is None else augmented(self, self.mara, experience)

    def loss_inputs(self, experience: Experience, log_prob_BT: Tensor) -> PolicySamples:
        """Build the loss inputs: the KL is subtracted from the reward or passed as a penalty.

        Args:
            experience: With the log-probabilities of the policy that sampled.
            log_prob_BT: Log-probabilities of the policy that learns, differentiable.
        """
        sampled_BT = experience.old_log_prob_BT
        assert sampled_BT is not None
        old_BT = sampled_BT if experience.num_updates else None  # None: on-policy, all ratios are 1
        reward_B, penalty = experience.augmented_reward, None
        if self.kl is not None and self.beta > 0:
            rest = (
                experience.reference_log_prob_BT,
                experience.rollout.token_mask_BT,
                experience.target_log_prob,
            )
            reward_B = reward_B - self.beta * self.kl.in_reward(sampled_BT, *rest)
            penalty = self.kl.in_loss(log_prob_BT, *rest, old_BT)
            penalty = None if penalty is None else self.beta * penalty
        return PolicySamples(
            log_prob_BT=log_prob_BT,
            token_mask_BT=experience.rollout.token_mask_BT,
            reward_B=experience.with_weight(reward_B),
            group_B=experience.rollout.group_B,
            old_log_prob_BT=old_BT,
            reference_log_prob_B=experience.target_log_prob,
            beta=self.beta,
            penalty=penalty,
            importance_B=importance_weight(
                experience.sampling_gap, self.importance_threshold, self.importance_cap
            ),
            scored_reward_B=experience.reward,
        )

    def optimizer_step(
        self,
        epoch: int,
        batch_idx: int,
        optimizer: Optimizer | LightningOptimizer,
        optimizer_closure: Callable[[], Any] | None = None,
    ) -> None:
        """Take `updates_per_rollout` steps on one rollout."""
        for _ in range(self.updates_per_rollout):
            optimizer.step(closure=optimizer_closure)

    def _step_loss(self, loss: LossSum) -> Tensor:
        self.experience_log.log_means(loss.numbers)
        return self.mean_of_all(loss)

    def _generator(self, step: int, rank: int, purpose: int = 0) -> torch.Generator:
        return seeded_generator(self.device, self._seed, step, rank, purpose)

    @property
    def _world_size(self) -> int:
        return int(self.trainer.world_size)

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Adapt the entropy bonus."""
        super().on_before_optimizer_step(optimizer)
        self.terms.before_optimizer_step()

    def on_train_batch_start(self, batch: Prompts, batch_idx: int) -> None:
        """Start the clock of a step."""
        self.clock.begin_step(self.device)

    def on_train_batch_end(self, outputs: Any, batch: Prompts, batch_idx: int) -> None:
        """Log the seconds of the step's parts."""
        self.experience_log.log_seconds(self.clock.end_step())

    # -- the summary ------------------------------------------------------------------------------

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return rows of the final table: entropies, failed scores."""
        rows = []
        for name, bits in self.evaluation.entropy_over_prompts().items():
            rows.append((f"{name}: entropy of the answers, all prompts (bits)", f"{bits:.4f}"))
        return rows + self.experience_log.summary_rows()

    # -- before and after -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Pass the data's tokenizer and the trainer's precision to the policy.

        Raises:
            ValueError: if the strategy shards the policy, settings contradict each other, or
                prompts do not fit into the model's context.
        """
        refuse_sharded(self.trainer, "PolicyOptimization samples from whole models")
        if self.updates_per_rollout > 1 and self.trainer.accumulate_grad_batches > 1:
            raise ValueError(
                f"model.init_args.updates_per_rollout is {self.updates_per_rollout} and "
                f"trainer.accumulate_grad_batches {self.trainer.accumulate_grad_batches}: set one "
                "of them to 1"
            )
        overlong = self.collect.overlong
        if overlong is not None and overlong.buffer and self.max_new_tokens is None:
            raise ValueError(
                "model.init_args.overlong.buffer needs a policy with a length limit (a language "
                "model): set buffer to null"
            )
        data = data_of(self)
        tokenizer = data.tokenizer if isinstance(data, HasTokenizer) else None
        if isinstance(self.policy, CausalLMPolicy) and tokenizer is not None:
            self.policy.use_tokenizer(tokenizer)
        if isinstance(self.policy, CausalLMPolicy):
            on_accelerator = not isinstance(self.trainer.accelerator, CPUAccelerator)
            self.policy.use_autocast(str(self.trainer.precision), on_accelerator)
            if isinstance(data, HasPrompts):
                self.policy.refuse_long_prompts(data.prompts)

    def on_fit_start(self) -> None:
        """Print what follows from the settings."""
        self._seed = torch.initial_seed()
        # The policy stays in eval mode on purpose, so that dropout does not change ratios.
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode")
        self.experience_log.tell(self._settings_findings)

    def on_train_start(self) -> None:
        """Validate once before the first step, without counting in Lightning's progress."""
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
        """Warn about a threshold that was never reached in a short run."""
        if not is_dry_run(self):
            self.experience_log.warn_of_threshold()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save the counts; of a model with adapters, keep what learns."""
        if isinstance(self.policy, CausalLMPolicy):
            leave_base_out(checkpoint, self.policy.model, "policy.model.")
        checkpoint["policy_optimization"] = {
            "experience_log": self.experience_log.state_dict(),
            "start_numbers": self.start_numbers,
            "terms": self.terms.state_dict(),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the counts."""
        if isinstance(self.policy, CausalLMPolicy):
            put_base_back(checkpoint, self.policy.model, "policy.model.")
        state = checkpoint["policy_optimization"]
        self.experience_log.load_state_dict(state["experience_log"])
        self.start_numbers = state["start_numbers"]
        if "terms" in state:  # checkpoints of earlier versions have none
            self.terms.load_state_dict(state["terms"])

    # -- validation -------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        """Start an evaluation."""
        self.evaluation.reset(self.device)

    @torch.no_grad()
    def validation_step(self, batch: Prompts, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Sample k completions of held-out prompts, always with the same noise, and score them."""
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
        self.experience_log.failures.after_validation_batch(experience.scores, rollout.texts)
        if self.mara is not None and self.mara.scope == "group" and self.mara.percentile is None:
            experience = self.augment(experience)
        self.evaluation.add(loader.name, experience)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's numbers and refresh the table of samples."""
        for name, value in self.evaluation.compute().items():
            # Already equal on every rank; sync_dist=True only silences Lightning's warning.
            self.log(name, value, sync_dist=True)
        self.sample_rows = self.evaluation.samples
        self.experience_log.restart_clock()

    def _validation_loaders(self) -> Sequence[Any]:
        loaders = self.trainer.val_dataloaders or data_of(self).val_dataloader()
        return loaders if isinstance(loaders, Sequence) else [loaders]

    # -- optimization -----------------------------------------------------------------------------

    def configure_optimizers(self) -> Any:
        """Return AdamW over all trainable parameters, with warm-up and schedule.

        Raises:
            ValueError: if no parameter is trainable, or the cosine has no end.
        """
        if not any(parameter.requires_grad for parameter in self.policy.parameters()):
            return optimizer_of_nothing(self)
        optimizer = build_adamw(
            self.policy,
            self.learning_rate,
            self.value_learning_rate,
            self.weight_decay,
            self.weight_decay,
            self.betas,
        )
        return scheduled(optimizer, self.schedule, self.warmup_steps, self.trainer)
