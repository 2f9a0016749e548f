"""MARA for those who train with TRL: its RLOO and GRPO trainers with mode-anchored rewards.

    trainer = MaraRLOOTrainer(
        mara=Mara(threshold=1.0),
        model="HuggingFaceTB/SmolLM2-135M-Instruct",
        reward_funcs=my_reward,
        args=RLOOConfig(beta=0.3, num_generations=16, ...),
        train_dataset=prompts,
    )

All other arguments, and generation (vLLM included), optimization, logs and checkpoints are TRL's.
Needs the extra `trl`; nothing else of Triptych imports this module.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from torch import Tensor

from triptych.objectives.diversify.mara import Mara

try:
    from trl import GRPOTrainer, RLOOTrainer
except ImportError as error:
    raise ModuleNotFoundError(
        "MaraRLOOTrainer and MaraGRPOTrainer are subclasses of TRL's trainers, and trl cannot be "
        f"imported ({error}): pip install 'triptych[trl]'"
    ) from error

# Shapes: B completions of this process, N those of all processes, F reward functions, T tokens

if TYPE_CHECKING:
    _Base = RLOOTrainer
else:
    _Base = object


class _WithMara(_Base):
    """Adds MARA to the rewards of a TRL trainer.

    TRL computes log-probabilities under the reference, then the rewards of all processes, then
    advantages. Here the rewards get one more column, with weight 1: the augmented reward minus the
    weighted sum of the other columns. Their sum is then the augmented reward, and TRL's log shows
    each reward function as it was.

    Logged besides: `mara/above_share`, `mara/shift_nats` and `mara/bonus`, each a mean over the
    completions of a step.
    """

    def __init__(self, *args: Any, mara: Mara, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.mara = mara
        self._reference_BT: Tensor | None = None
        self._refuse_settings()
        self.reward_weights = torch.cat([self.reward_weights, self.reward_weights.new_ones(1)])

    def _refuse_settings(self) -> None:
        args: Any = self.args
        if self.beta == 0.0:
            raise ValueError(
                "args.beta is 0: MARA needs the KL to a reference, set it above 0 (the paper: "
                "0.03 to 0.3)"
            )
        if self.mara.algorithm != 1:
            raise ValueError(
                "mara.algorithm is 2, which also replaces log-probabilities under the reference: "
                "set it to 1, which is the same for TRL's reverse KL"
            )
        if getattr(args, "reward_clip_range", None):
            raise ValueError(
                "args.reward_clip_range would cut the augmented rewards: leave it out, and clip in "
                "the reward function or by mara.clip"
            )
        if getattr(args, "multi_objective_aggregation", "sum_then_normalize") != (
            "sum_then_normalize"
        ):
            raise ValueError(
                "args.multi_objective_aggregation normalises each reward by itself, but MARA "
                "augments their sum: set it to sum_then_normalize"
            )
        if getattr(self, "tools", None) or getattr(self, "environment_factories", None):
            raise ValueError(
                "MARA compares probabilities of completions, and with tools a part of them was "
                "not written by the model: train without tools and environments"
            )

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        """Keep the last log-probabilities without gradient: before rewards, the reference's."""
        result = super()._get_per_token_logps_and_entropies(*args, **kwargs)
        if not torch.is_grad_enabled():
            self._reference_BT = result[0]
        return result

    def _calculate_rewards(
        self,
        inputs: Any,
        prompts: Sequence[Any],
        completions: Sequence[Any],
        completion_ids_list: Sequence[Sequence[int]],
    ) -> Tensor:
        """Return the rewards of all processes and functions, and MARA's share: (N, F + 1)."""
        reward_NF: Tensor = super()._calculate_rewards(
            inputs, prompts, completions, completion_ids_list
        )
        reference_N, num_tokens_N = self._reference_log_prob(completion_ids_list)
        weight_F = self.reward_weights[:-1].to(reward_NF.device)
        reward_N = (reward_NF * weight_F).nansum(1)
        reward_N[reward_NF.isnan().all(1)] = torch.nan  # as TRL marks what nothing could score
        assert self.model is not None
        is_training = self.model.training
        size = self.num_generations if is_training else self.num_generations_eval
        assert size is not None
        augmentation = self.mara.augment(
            reward_N,
            reference_N,
            torch.arange(len(reward_N), device=reward_N.device) // size,
            self.beta,
            step=self.state.global_step,
            num_tokens_B=num_tokens_N,
        )
        bonus_N = augmentation.reward_B - reward_N
        self._log_metric("mara/above_share", float(augmentation.above_B.float().mean()))
        self._log_metric("mara/shift_nats", float(augmentation.shift_B.mean()))
        self._log_metric("mara/bonus", float(bonus_N.nanmean()))
        return torch.cat([reward_NF, bonus_N[:, None]], 1)

    def _reference_log_prob(
        self, completion_ids_list: Sequence[Sequence[int]]
    ) -> tuple[Tensor, Tensor]:
        """Return log-probability under the reference and length of all completions, (N,)."""
        reference_BT, self._reference_BT = self._reference_BT, None
        lengths = [len(ids) for ids in completion_ids_list]
        fits = reference_BT is not None and len(reference_BT) == len(lengths)
        if reference_BT is None or not fits or reference_BT.shape[1] < max(lengths):
            raise RuntimeError(
                f"TRL's {type(self).__mro__[2].__name__} did not compute the reference's "
                "log-probabilities before the rewards: this version of trl is not one that "
                "MaraRLOOTrainer and MaraGRPOTrainer were tested with (1.16)"
            )
        length_B = torch.tensor(lengths, device=reference_BT.device, dtype=torch.int64)
        mask_BT = torch.arange(reference_BT.shape[1], device=length_B.device) < length_B[:, None]
        reference_B = reference_BT.masked_fill(~mask_BT, 0.0).sum(1)
        if self.mask_truncated_completions:
            # TRL masks them, so their log-probabilities are no numbers to compare with.
            ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
            is_cut = [ids[-1] not in ends for ids in completion_ids_list]
            reference_B[torch.tensor(is_cut, device=reference_B.device, dtype=torch.bool)] = (
                torch.nan
            )
        return gather(reference_B), gather(length_B)


class MaraRLOOTrainer(_WithMara, RLOOTrainer):
    """TRL's `RLOOTrainer` with mode-anchored rewards.

    Args:
        *args: Those of `RLOOTrainer`.
        mara: The augmentation; algorithm 1.
        **kwargs: Those of `RLOOTrainer`.

    Raises:
        ValueError: on settings under which the augmentation would not be exact.

    Source: 2510.20817, algorithm 1 (`triptych.objectives.diversify.mara`).
    """


class MaraGRPOTrainer(_WithMara, GRPOTrainer):  # type: ignore[misc]  # typed as RLOO's part
    """TRL's `GRPOTrainer` with mode-anchored rewards.

    Args:
        *args: Those of `GRPOTrainer`; `args.beta` has to be above 0, TRL's default is 0.
        mara: The augmentation; algorithm 1.
        **kwargs: Those of `GRPOTrainer`.

    Raises:
        ValueError: on settings under which the augmentation would not be exact.

    Source: 2510.20817, algorithm 1 (`triptych.objectives.diversify.mara`). GRPO divides rewards of
    a group by their standard deviation (`args.scale_rewards`); the paper's theorem is about rewards
    that are not rescaled, so set it to "none" where odds at the optimum matter.
    """
