"""The completions of a training step: sampled, scored, shaped by length, augmented, filtered."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from triptych.models.diversify.rollout import join_rollouts
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.group_filter import GroupFilter, in_equal_group
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.overlong import Overlong
from triptych.objectives.rewards.base import Scores

if TYPE_CHECKING:
    from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization

# Shapes: B completions, P prompts

Prompts = Sequence[Mapping[str, Any]]


class Collecting:
    """Collects the completions of a step.

    Args:
        module: The module that samples, scores and augments.
        group_filter: What to do with groups of equal rewards; None: nothing.
        overlong: What to do with long completions; None: nothing.
    """

    def __init__(
        self,
        module: "PolicyOptimization",
        group_filter: GroupFilter | None,
        overlong: Overlong | None,
    ) -> None:
        # Wrapped in a tuple to keep it out of `state_dict` and `repr`.
        self._module = (module,)
        self.group_filter = group_filter
        self.overlong = overlong

    @property
    def module(self) -> "PolicyOptimization":
        """The module that samples, scores and augments."""
        return self._module[0]

    def __call__(self, prompts: Prompts, step: int) -> Experience:
        """Sample and score completions of the prompts, one group each, in their order."""
        scored = self._draw(prompts, step, 0)
        experience = self.module.augment(scored)
        if self.group_filter is None:
            return experience
        resampled = torch.zeros(len(prompts), dtype=torch.bool)
        for number in range(1, self.group_filter.tries + 1):
            equal_P = self._equal_groups(experience, len(prompts))
            # All processes go on together, since augmenting may need the rows of all.
            if not self.module.experience_log.over_ranks([int(equal_P.sum())])[0]:
                break
            resampled |= equal_P
            scored = self._with_fresh(scored, prompts, equal_P, step, number)
            experience = self.module.augment(scored)
        dropped_B = self._in_equal_group(experience)
        experience.leave_out(dropped_B)
        sums = [int(resampled.sum()), len(prompts), dropped_B.sum(), len(dropped_B)]
        redrawn, groups, dropped, rows = self.module.experience_log.over_ranks(sums)
        self.module.experience_log.log_value("train/dropped_share", dropped / rows)
        if self.group_filter.tries:
            self.module.experience_log.log_value("train/resampled_prompts_share", redrawn / groups)
        return experience

    def _equal_groups(self, experience: Experience, num_prompts: int) -> Tensor:
        """Return which groups have equal rewards, (P,), on the host."""
        group_B = experience.rollout.group_B
        equal_B = self._in_equal_group(experience)
        equal_P = torch.zeros(num_prompts, dtype=torch.bool, device=group_B.device)
        return equal_P.index_fill(0, group_B[equal_B], True).cpu()

    def _in_equal_group(self, experience: Experience) -> Tensor:
        reward_B = experience.with_weight(experience.augmented_reward)
        return in_equal_group(reward_B, experience.rollout.group_B)

    def _with_fresh(
        self, scored: Experience, prompts: Prompts, equal_P: Tensor, step: int, number: int
    ) -> Experience:
        """Replace the groups of equal rewards by new samples of their prompts."""
        places = equal_P.nonzero().flatten().tolist()
        if not places:
            return scored
        fresh = self._draw([prompts[place] for place in places], step, number)
        rollout = join_rollouts([scored.rollout, fresh.rollout])
        # The place of each group: its own, or that of the prompt it is sampled for again.
        all_places = [*range(len(prompts)), *places]
        place_G = torch.tensor(all_places, device=rollout.group_B.device, dtype=torch.int64)
        is_old_G = torch.arange(len(place_G), device=place_G.device) < len(prompts)
        is_replaced_G = is_old_G & equal_P.to(place_G.device)[place_G]
        place_B = place_G[rollout.group_B]
        kept_B = ~is_replaced_G[rollout.group_B]
        rows = place_B.masked_fill(~kept_B, len(prompts)).argsort(stable=True)
        rows = rows[: int(kept_B.sum())]
        joined = replace(rollout, group_B=place_B).select(rows)
        scores = _selected(scored.scores, fresh.scores, rows)
        reference_BT = self.module.policy.reference_token_log_prob(joined)
        together = Experience(joined, scores, reference_BT)
        self._mask(together)
        return together

    def _draw(self, prompts: Prompts, step: int, number: int) -> Experience:
        module = self.module
        with module.clock("generation"):
            # A subclass may know the first draw only.
            rollout = (
                module.sample(prompts, step, number) if number else module.sample(prompts, step)
            )
        module.reward.begin(rollout)
        scored = module.score(rollout)
        if self.overlong is not None and self.overlong.buffer is not None:
            scored = self._penalised(scored)
        self._mask(scored)
        return scored

    def _mask(self, scored: Experience) -> None:
        if self.overlong is not None and self.overlong.mask_unfinished:
            scored.leave_out(~scored.rollout.finished_B)

    def _penalised(self, scored: Experience) -> Experience:
        assert self.overlong is not None
        limit = self.module.max_new_tokens
        assert limit is not None  # `PolicyOptimization` has checked it
        added_B = self.overlong.addition(scored.rollout.num_tokens, limit)
        components = scored.scores.components | {"length_penalty": added_B}
        reward_B = scored.scores.reward_B + added_B
        scores = replace(scored.scores, reward_B=reward_B, components=components)
        return replace(scored, scores=scores)


def augmented(module: "PolicyOptimization", mara: Mara, experience: Experience) -> Experience:
    """Apply equation 11, over the rows of all processes where the anchors need them.

    Args:
        module: The module that trains.
        mara: The augmentation.
        experience: Completions of this process.
    """
    columns = [
        experience.with_weight(experience.reward),
        experience.reference_log_prob,
        experience.rollout.group_B,
        experience.rollout.num_tokens,
    ]
    count, first = len(experience.rollout), 0
    needs_all = mara.percentile is not None or mara.scope != "group"
    if needs_all and module.trainer.world_size > 1:
        first = count * module.trainer.global_rank
        ranks: list[Any] = [module.all_gather(column) for column in columns]
        columns = [column.flatten(0, 1) for column in ranks]
        # Groups of different ranks are different.
        columns[2] += torch.arange(len(columns[2]), device=module.device) // count * count
    reward_B, reference_B, group_B, num_tokens_B = columns
    augmentation = mara.augment(
        reward_B,
        reference_B,
        group_B,
        module.beta,
        step=module.trainer.global_step,
        num_tokens_B=num_tokens_B,
    )
    return replace(experience, augmentation=augmentation.rows(first, count))


def _selected(first: Scores, second: Scores, rows: Tensor) -> Scores:
    """Join scores, and select rows of them."""
    count = len(first.reward_B)
    errors = first.errors | {row + count: text for row, text in second.errors.items()}
    over_budget = first.over_budget | {row + count for row in second.over_budget}
    components = {}
    for name in first.components | second.components:
        nothing = [torch.full_like(part.reward_B, torch.nan) for part in (first, second)]
        parts = [
            part.components.get(name, empty)
            for part, empty in zip((first, second), nothing, strict=True)
        ]
        components[name] = torch.cat(parts)[rows]
    place_of = {row: place for place, row in enumerate(rows.tolist())}
    return Scores(
        torch.cat([first.reward_B, second.reward_B])[rows],
        components,
        {place_of[row]: text for row, text in sorted(errors.items()) if row in place_of},
        {place_of[row] for row in over_budget if row in place_of},
    )
