"""REINVENT's policy optimisation of molecules under an oracle budget, with MARA or without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from triptych.lit_modules.diversify.molecules.replay_seeds import fill_with_seeds, respelled_for
from triptych.lit_modules.diversify.molecules.search_wording import in_terms_of_sigma
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization, Prompts, Schedule
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.diversify.molecules.smiles_policy import SmilesPolicy, load_molecule_policy
from triptych.models.diversify.rollout import Rollout, only_texts
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.molecules.diversity_filters import DiversityFilter
from triptych.objectives.diversify.molecules.experience_replay import ExperienceReplay
from triptych.objectives.diversify.molecules.random_distillation import RandomDistillation
from triptych.objectives.diversify.policy_loss import Dap, LossSum, PolicyLoss
from triptych.objectives.rewards.base import FatalRewardError, Reward, Scores
from triptych.objectives.rewards.molecules.oracle_reward import OracleReward

# Shapes: B completions, R replayed ones, T completion positions

_FOR_REPLAY = 2**31 + 1
_LEDGER = "oracle.sqlite"


class MoleculeOptimization(PolicyOptimization):
    """Optimises a molecule prior under a limited oracle budget.

    A step samples molecules, scores those that the ledger does not know, lowers the rewards of
    kinds that were found often (`diversity_filter`), adds remembered molecules (`replay`), augments
    all rewards (`mara`), and takes a step on REINVENT's loss, (log pi_prior + sigma R - log pi)^2.
    That is the reverse KL with beta = 1 / sigma: its optimum is pi_prior exp(sigma R),
    unnormalised.

    Args:
        reward: The reward to maximise, usually an
            `triptych.objectives.rewards.molecules.oracle_reward.OracleReward`. Without a `ledger`
            it writes `oracle.sqlite` in the run's directory; a run resumed in another directory
            copies the calls to its own.
        init_from: Exported prior, or an experiment's config, which is then run first.
        vocab_size: Not used; the prior brings its vocabulary.
        mara: Mode-anchored reward augmentation, `scope: batch` or `batch_and_replay`; null: none.
        sigma: REINVENT's sigma, in nats per unit of reward; beta = 1 / sigma.
        loss: The policy loss by its class_path; null: DAP. Others get the reverse KL in the
            reward.
        num_samples: Molecules of a step.
        updates_per_rollout: Optimizer steps on the molecules of a step.
        replay: Memory of the best molecules; null: none. For DAP and one process.
        diversity_filter: Buckets of similar molecules, where the reward falls as they fill, or a
            bonus for molecules unlike earlier ones (`random_distillation`); null: none.
        max_new_tokens: Longest molecule in tokens, end token included.
        learning_rate: Learning rate of Adam.
        schedule: As in `PolicyOptimization`.
        warmup_steps: Steps of linear warm-up.
        stop_after_failures: As in `PolicyOptimization`. An `OracleReward` has its own.

    Attributes:
        replayed: Molecules from the memory in the last step.
        generated_samples: Molecules sampled since the start, on all processes.
        oracle_calls: Number of the last call of which this run has seen the score; equal to the
            budget once a molecule was left unscored. A run that resumes after a kill counts the
            calls of its ledger again, so it ends at the same step as an uninterrupted one.

    Raises:
        ValueError: on settings that contradict each other or are out of range.

    Source: REINVENT 2.0 (Blaschke et al. 2020); 2510.20817, section 5. MARA's anchor is chosen by
    the rewards after the filter, and from replayed molecules too with `batch_and_replay`. The paper
    leaves both open (ours).
    """

    headline_metrics: tuple[str, ...] = ("reward/*", "train/oracle_calls")

    def __init__(
        self,
        reward: Reward,
        init_from: str,
        vocab_size: int | None = None,
        mara: Mara | None = None,
        sigma: PositiveFloat = 64.0,
        loss: PolicyLoss | None = None,
        num_samples: PositiveInt = 64,
        updates_per_rollout: PositiveInt = 1,
        replay: ExperienceReplay | None = None,
        diversity_filter: DiversityFilter | RandomDistillation | None = None,
        max_new_tokens: PositiveInt = 100,
        learning_rate: NonNegativeFloat = 1e-3,
        schedule: Schedule = "constant",
        warmup_steps: NonNegativeInt = 0,
        stop_after_failures: PositiveInt | None = 3,
    ) -> None:
        loss = loss or Dap()
        if replay is not None and not isinstance(loss, Dap):
            raise ValueError(
                "model.init_args.replay is set, but the loss is not "
                "triptych.objectives.diversify.policy_loss.Dap: the others hold only for fresh "
                "samples. Set replay to null, or leave the loss out"
            )
        if mara is not None and mara.scope == "batch_and_replay" and replay is None:
            raise ValueError(
                "model.init_args.mara.scope is batch_and_replay, but there is no replay: set "
                "model.init_args.replay, or the scope to batch"
            )
        super().__init__(
            vocab_size=None,
            reward=reward,
            policy=load_molecule_policy(init_from, max_new_tokens),
            mara=mara,
            loss=loss,
            beta=1 / sigma,
            num_samples=num_samples,
            updates_per_rollout=updates_per_rollout,
            learning_rate=learning_rate,
            schedule=schedule,
            warmup_steps=warmup_steps,
            evaluate_first=False,
            stop_after_failures=None if isinstance(reward, OracleReward) else stop_after_failures,
        )
        # Findings about the optimum do not fit a search, which ends long before it.
        self._settings_findings = [
            finding for finding in self._settings_findings if not finding.is_about_speed
        ]
        self.experience_log.reworded = in_terms_of_sigma
        self.init_from = init_from
        self.replay = replay
        self.diversity_filter = diversity_filter
        self.replayed: Experience | None = None
        self.generated_samples = 0
        self.oracle_calls = 0
        self._keeps_own_ledger = False

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer of the prior, which the exported policy is sampled with."""
        policy = self.policy
        assert isinstance(policy, SmilesPolicy | CausalLMPolicy)
        return policy.tokenizer

    @property
    def model(self) -> nn.Module:
        """The network, for exports."""
        assert isinstance(self.policy, SmilesPolicy | CausalLMPolicy)
        return self.policy.model

    def export_state_dict(self) -> dict[str, Tensor]:
        """Return the weights of `model`."""
        assert isinstance(self.policy, SmilesPolicy | CausalLMPolicy)
        return self.policy.export_state_dict()

    # -- a training step --------------------------------------------------------------------------

    def training_step(self, batch: Prompts, batch_idx: int) -> Tensor:
        """Sample, score, filter, replay, augment; then take an update on the result."""
        log_prob_BT = None
        if self.experience is None or self._is_used_up(self.experience):
            step = self.trainer.fit_loop.total_batch_idx
            with self.clock("generation"):
                rollout = self.sample(batch, step)
            if self._world_size == 1:
                self.reward.begin(rollout)
            with self.clock("scoring"):
                log_prob_BT = self.policy.token_log_prob(rollout)  # while workers score
            scored = self.score(rollout)
            filtered = self._filter(scored)
            self.experience, self.replayed = self._augment_both(filtered, self._draw(step))
            if self.replay is not None:
                self.replay.add(scored.rollout, scored.reward)
        loss = self._loss_of(self.experience, log_prob_BT)
        if self.replayed is not None:
            replayed = self._loss_of(self.replayed)
            loss = LossSum(loss.total + replayed.total, loss.count + replayed.count, loss.numbers)
        return self._step_loss(loss)

    def sample(self, prompts: Prompts, step: int, number: int = 0) -> Rollout:
        """Sample molecules from the start token; the draw follows from seed, step and rank."""
        assert isinstance(self.policy, SmilesPolicy | CausalLMPolicy)
        assert self.policy.tokenizer is not None  # the prior brings it
        start = {"prompt_ids": [self.policy.tokenizer.bos_token_id], "prompt": ""}
        rollout = super().sample([start] * len(prompts), step, number)
        self.generated_samples += len(rollout) * self._world_size
        return rollout

    def scores_of(self, rollout: Rollout) -> Scores:
        """Score molecules on the first process, which owns the ledger, and count the calls."""
        if self._world_size == 1:
            scores = self.reward(rollout)
            self._count_calls(scores)
        else:
            scores = self._scores_from_first(rollout)
        # A budget that ends within a step is not a failure of a molecule.
        rest = {row: text for row, text in scores.errors.items() if row not in scores.over_budget}
        return replace(scores, errors=rest)

    def _scores_from_first(self, rollout: Rollout) -> Scores:
        texts: list[Any] = [None] * self._world_size
        torch.distributed.all_gather_object(texts, list(rollout.texts))
        shared: list[Any] = [None]
        if self.trainer.is_global_zero:
            try:
                shared = [self.reward(only_texts([text for part in texts for text in part]))]
            except FatalRewardError as error:  # or the other processes would wait for ever
                torch.distributed.broadcast_object_list([str(error)], src=0)
                raise
        torch.distributed.broadcast_object_list(shared, src=0)
        if isinstance(shared[0], str):
            raise FatalRewardError(shared[0])
        everyone: Scores = shared[0]
        self._count_calls(everyone)
        first = sum(len(part) for part in texts[: self.trainer.global_rank])
        return everyone.rows(first, len(rollout)).to(self.device)

    def _count_calls(self, scores: Scores) -> None:
        """Update `oracle_calls` from the scores of all processes."""
        if not isinstance(self.reward, OracleReward):
            return
        if scores.over_budget:
            self.oracle_calls = self.reward.budget
        numbers_B = scores.components.get("oracle_call")
        if numbers_B is not None and len(numbers_B):
            last = int(numbers_B.nan_to_num().max())
            self.oracle_calls = max(self.oracle_calls, last)

    def _filter(self, scored: Experience) -> Experience:
        """Lower the rewards of molecules in full buckets; the log keeps the scored rewards."""
        if self.diversity_filter is None:
            return scored
        reward_B = self.diversity_filter.penalised(scored.rollout.texts, scored.reward)
        components = scored.scores.components | {"before_filter": scored.reward}
        scores = replace(scored.scores, reward_B=reward_B, components=components)
        return replace(scored, scores=scores)

    @torch.no_grad()
    def _draw(self, step: int) -> Experience | None:
        """Draw molecules from the memory, with rewards as the filter rates them now."""
        if self.replay is None:
            return None
        drawn = self.replay.draw(
            self._generator(step, self.trainer.global_rank, _FOR_REPLAY), self.device
        )
        if drawn is None:
            return None
        rollout, reward_R = drawn
        if self.replay.num_spellings:
            rollout, rows = respelled_for(self, rollout, self.replay.num_spellings, step)
            reward_R = reward_R[rows]
        if self.diversity_filter is not None:
            pairs = zip(rollout.texts, reward_R.tolist(), strict=True)
            factors = [self.diversity_filter.factor(text, reward) for text, reward in pairs]
            reward_R = reward_R * torch.tensor(factors, device=self.device, dtype=torch.float32)
        return Experience(rollout, Scores(reward_R), self.policy.reference_token_log_prob(rollout))

    @torch.no_grad()
    def _augment_both(
        self, fresh: Experience, replayed: Experience | None
    ) -> tuple[Experience, Experience | None]:
        """Apply equation 11 to fresh and replayed molecules together."""
        if self.mara is None or replayed is None:
            return self.augment(fresh), replayed
        parts, count = (fresh, replayed), len(fresh.rollout)
        reward_B = torch.cat([part.reward for part in parts])
        augmentation = self.mara.augment(
            reward_B,
            torch.cat([part.reference_log_prob for part in parts]),
            torch.cat([part.rollout.group_B for part in parts]),
            self.beta,
            step=self.trainer.global_step,
            num_tokens_B=torch.cat([part.rollout.num_tokens for part in parts]),
            replayed_B=torch.arange(len(reward_B), device=self.device) >= count,
        )
        return (
            replace(fresh, augmentation=augmentation.rows(0, count)),
            replace(replayed, augmentation=augmentation.rows(count, len(replayed.rollout))),
        )

    def _loss_of(self, experience: Experience, log_prob_BT: Tensor | None = None) -> LossSum:
        if log_prob_BT is None:
            log_prob_BT = self.policy.token_log_prob(experience.rollout)
        if experience.old_log_prob_BT is None:
            experience.old_log_prob_BT = log_prob_BT.detach()
            if experience is self.experience:
                self.experience_log.note(experience, type(self.reward).__name__)
                self._log_search(experience)
        loss = self.loss(self.loss_inputs(experience, log_prob_BT))
        experience.num_updates += 1
        return loss

    def _log_search(self, experience: Experience) -> None:
        calls_B = experience.scores.components.get("oracle_call")
        if calls_B is not None:
            valid, total = self.experience_log.over_ranks([(calls_B != 0).sum(), len(calls_B)])
            self.log("train/valid_share", valid / total)
        if isinstance(self.reward, OracleReward):
            self.log("train/oracle_calls", float(self.oracle_calls), prog_bar=True)
        self.log("train/generated_samples", float(self.generated_samples))
        if isinstance(self.diversity_filter, DiversityFilter):
            self.log("train/full_buckets", float(self.diversity_filter.num_full))

    # -- before and after -------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Set the path of the oracle's ledger.

        Raises:
            ValueError: if there are several processes and a replay or filter.
        """
        super().setup(stage)
        self.trainer.limit_val_batches = 0  # a validation would cost oracle calls
        if self._world_size > 1:
            for name in ("replay", "diversity_filter"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"model.init_args.{name} keeps one memory, but there are "
                        f"{self._world_size} processes: set it to null, or trainer.devices to 1"
                    )
        if isinstance(self.reward, OracleReward) and self.reward.ledger_path is None:
            self._keeps_own_ledger = True
            folder = Path(self.trainer.default_root_dir)
            self.reward.ledger_path = str(folder / _LEDGER)

    def on_fit_start(self) -> None:
        """Pass the run's seed to the ledger."""
        super().on_fit_start()
        if isinstance(self.reward, OracleReward) and self.reward.seed is None:
            self.reward.seed = self._seed

    def on_train_start(self) -> None:
        """Fill the memory with the user's own molecules."""
        super().on_train_start()
        if self.replay is not None and self.replay.seeds and self.trainer.global_step == 0:
            fill_with_seeds(self, self.replay)

    def teardown(self, stage: str) -> None:
        """Stop the scoring processes."""
        if isinstance(self.reward, OracleReward):
            self.reward.close()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Save memory, buckets and counts, and put the calls into the ledger's file itself."""
        super().on_save_checkpoint(checkpoint)
        if isinstance(self.reward, OracleReward) and self.trainer.is_global_zero:
            self.reward.checkpoint()
        memories = {"replay": self.replay, "diversity_filter": self.diversity_filter}
        checkpoint["molecule_optimization"] = {
            "generated_samples": self.generated_samples,
            "oracle_calls": self.oracle_calls,
            "folder": str(Path(self.trainer.default_root_dir).absolute()),
            **{name: None if m is None else m.state_dict() for name, m in memories.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore memory, buckets and counts.

        Raises:
            ValueError: if only one of this run and the checkpoint's has a replay or filter, or the
                ledger lacks calls that the checkpoint's run made.
        """
        super().on_load_checkpoint(checkpoint)
        state = checkpoint["molecule_optimization"]
        self.generated_samples = state["generated_samples"]
        self.oracle_calls = state["oracle_calls"]
        for name in ("replay", "diversity_filter"):
            memory = getattr(self, name)
            if (memory is None) != (state[name] is None):
                raise ValueError(
                    f"model.init_args.{name} is {'null' if memory is None else 'set'}, unlike in "
                    "the checkpoint's run: give it as in the checkpoint's config.yaml"
                )
            if memory is not None:
                memory.load_state_dict(state[name])
        if self._keeps_own_ledger and self.oracle_calls and self.trainer.is_global_zero:
            self._take_calls_along(Path(state["folder"]))
        if self.oracle_calls and self._trainer is not None and self.trainer.is_global_zero:
            self._refuse_lost_calls()

    def _refuse_lost_calls(self) -> None:
        """Compare the ledger with the checkpoint."""
        if not isinstance(self.reward, OracleReward) or self.reward.ledger_path is None:
            return
        last = self.reward.ledger.last_number()
        if last < min(self.oracle_calls, self.reward.budget):
            raise ValueError(
                f"the checkpoint's run made {self.oracle_calls:,} oracle calls, but the ledger "
                f"{self.reward.ledger_path} has {last:,}: it was emptied, or replaced by an older "
                "copy. Put the file with all calls back, or they would be made again"
            )

    def _take_calls_along(self, folder: Path) -> None:
        """Copy the ledger of the resumed run, if this run has another folder."""
        assert isinstance(self.reward, OracleReward)
        assert self.reward.ledger_path is not None
        if Path(self.reward.ledger_path).is_file():
            return
        # The folder may have been moved since, with its checkpoints.
        moved = Path(str(self.trainer.ckpt_path)).absolute().parent.parent
        for place in (folder / _LEDGER, moved / _LEDGER):
            if place.is_file():
                self.reward.ledger.copy_from(place)
                return
        raise ValueError(
            f"the checkpoint's run made {self.oracle_calls:,} oracle calls, but {folder / _LEDGER} "
            "is gone: name the file by model.init_args.reward.init_args.ledger, or all of them "
            "would be made again"
        )
