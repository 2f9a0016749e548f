"""Terms of the loss beside the policy loss: an entropy bonus and a rehearsal."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.lit_modules.diversify.reference_rehearsal import (
    ReferenceRehearsal,
    Rehearsed,
    join_rehearsed,
)
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.policy_loss import LossSum, PolicySamples
from triptych.objectives.diversify.rivals.entropy_bonus import (
    EntropyBonus,
    EntropyControl,
    entropy_sum,
)
from triptych.objectives.diversify.rivals.rehearsal import Rehearsal

if TYPE_CHECKING:
    from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization

# Shapes: B completions, T completion positions


class FurtherTerms:
    """Computes the terms of a step, and keeps what they need from step to step.

    Args:
        module: The module whose policy learns.
        bonus: Settings of an entropy bonus; None for none.
        rehearsal: Settings of a rehearsal; None for none.
    """

    def __init__(
        self,
        module: "PolicyOptimization",
        bonus: EntropyBonus | None,
        rehearsal: Rehearsal | None,
    ) -> None:
        # Wrapped in a tuple to keep it out of `state_dict` and `repr`.
        self._module = (module,)
        self.control = None if bonus is None else EntropyControl(bonus)
        self.rehearsal = rehearsal
        self.reference = None
        if rehearsal is not None:
            self.reference = ReferenceRehearsal(rehearsal, module.sample_reference)
        self._rehearsed: Rehearsed | None = None
        self._entropy: list[Tensor] = []

    @property
    def module(self) -> "PolicyOptimization":
        """The module whose policy learns."""
        return self._module[0]

    def score(self, rollout: Rollout) -> tuple[Tensor, Tensor | None]:
        """Return the policy's log-probabilities and, for a bonus, the entropy of each token."""
        policy = self.module.policy
        if self.control is None:
            return policy.token_log_prob(rollout), None
        return policy.token_log_prob_and_entropy(rollout)

    def prepare(self, experience: Experience, prompts: Sequence[Mapping[str, Any]]) -> None:
        """Leave out the completions of prompts that are rehearsed instead.

        Args:
            experience: The completions of the step.
            prompts: The rows of its groups, in their order.
        """
        self._rehearsed = None
        if self.reference is None:
            return
        parts = self.reference.of(prompts)
        solved_P = torch.tensor([part is not None for part in parts], dtype=torch.bool)
        experience.leave_out(solved_P.to(self.module.device)[experience.rollout.group_B])
        found = [part for part in parts if part is not None]
        if found:
            self._rehearsed = join_rehearsed(found)
        solved, total = self.module.experience_log.over_ranks([len(found), len(parts)])
        self.module.experience_log.log_value("train/rehearsed_prompts_share", solved / total)

    def loss(self, samples: PolicySamples, entropy_BT: Tensor | None) -> Tensor | float:
        """Return the sum of the terms, each a mean over the tokens of all processes.

        Args:
            samples: The input of the policy loss.
            entropy_BT: From `score`.
        """
        total: Tensor | float = 0.0
        if self.control is not None:
            assert entropy_BT is not None
            counted_BT = samples.token_mask_BT & samples.scored[:, None]
            total = total + self._mean(self.control.term(entropy_BT, counted_BT))
            self._entropy.append(torch.stack(entropy_sum(entropy_BT, counted_BT)).double())
        if self.rehearsal is not None:
            term = self._rehearsal_term(samples)
            total = total + self._mean(term)
            self._log_rehearsal(term)
        return total

    def _mean(self, term: LossSum) -> Tensor:
        """Return the mean over the tokens of all processes."""
        trainer, count = self.module.trainer, term.count
        if trainer.world_size > 1:
            count = trainer.strategy.reduce(count.clone().double(), reduce_op="sum")
        return term.mean(count, int(trainer.world_size))

    def _rehearsal_term(self, samples: PolicySamples) -> LossSum:
        assert self.rehearsal is not None
        if self._rehearsed is None:  # a term of 0, so that all processes reduce the same numbers
            nothing_BT = torch.zeros_like(samples.token_mask_BT)
            log_prob_BT = samples.log_prob_BT
            return self.rehearsal.term(log_prob_BT, log_prob_BT.detach(), nothing_BT)
        rollout = self._rehearsed.rollout
        return self.rehearsal.term(
            self.module.policy.token_log_prob(rollout),
            self._rehearsed.reference_log_prob_BT,
            rollout.token_mask_BT,
        )

    def _log_rehearsal(self, term: LossSum) -> None:
        """Log the divergence of a token, over all processes: one may have none."""
        assert self.rehearsal is not None
        log = self.module.experience_log
        total, count = log.over_ranks([term.total.detach(), term.count])
        value = total / self.rehearsal.coefficient / max(count, 1.0)
        log.log_value("train/rehearsal_nats_per_token", value)

    def before_optimizer_step(self) -> None:
        """Log the entropy of the step's tokens, and adapt the coefficient of the next step."""
        if self.control is None or not self._entropy:
            return
        log = self.module.experience_log
        total, count = log.over_ranks(list(torch.stack(self._entropy).sum(0)))
        self._entropy = []
        mean = total / max(count, 1.0)
        log.log_value("train/token_entropy_nats", mean)
        log.log_value("train/entropy_coefficient", self.control.applied)
        self.control.end_step(mean)

    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed training needs."""
        return {"entropy": None if self.control is None else self.control.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the state; a bonus that the checkpoint's run did not have starts anew."""
        if self.control is not None and state["entropy"] is not None:
            self.control.load_state_dict(state["entropy"])
