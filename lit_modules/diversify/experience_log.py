"""Metrics and one-time messages about the training steps of a policy."""

import math
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from triptych.lit_modules.diversify.reward_failures import RewardFailures, num_failed
from triptych.metrics.rank_sums import sum_over_ranks
from triptych.models.diversify.rollout import Rollout
from triptych.models.host_to_device import send
from triptych.objectives.diversify.collapse_diagnosis import diagnose_samples
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.diversify.groups import equal_groups
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.step_diagnosis import StepDiagnosis

# Shapes: B completions

# After this many steps without a completion at the threshold, the user is warned.
_STEPS_BEFORE_WARNING = 20
_SECONDS_BETWEEN_RATES = 2.0
_COUNTED = ("failed_samples", "above_samples", "num_steps", "_has_warned_of_threshold")
# Above this share of completions without a score, what is left is told to be biased.
_MUCH_FAILED = 0.1


class ExperienceLog:
    """Logs means over the completions of all processes, and counts.

    Args:
        module: Module that the metrics are logged on.
        mara: Augmentation of the rewards; None: not augmented.
        beta: Coefficient of the KL.
        importance_threshold: Gap above which a completion has an importance weight; None: never.
        stop_after_failures: Steps in a row in which every completion fails that stop the run; None:
            never.

    Attributes:
        failures: Stops the run if the reward no longer scores anything.
        failed_samples: Number of completions so far that could not be scored.
        above_samples: Number of completions so far at or above MARA's threshold.
        num_steps: Number of training steps so far.
    """

    def __init__(
        self,
        module: LightningModule,
        mara: Mara | None,
        beta: float,
        importance_threshold: float | None = None,
        stop_after_failures: int | None = None,
    ) -> None:
        # Wrapped in a tuple to keep it out of `state_dict` and `repr`.
        self._module = (module,)
        self.mara = mara
        self.beta = beta
        self.importance_threshold = importance_threshold
        self.failures = RewardFailures(stop_after_failures)
        self.steps = StepDiagnosis(has_mara=mara is not None)
        self.failed_samples = 0
        self.above_samples = 0
        self.num_steps = 0
        self._num_tokens = 0.0
        self._has_shown_failure = False
        #: Words a finding in the terms of the module's settings.
        self.reworded: Callable[[str], str] = str
        self._has_warned_of_threshold = False
        self.restart_clock()

    @property
    def module(self) -> LightningModule:
        """The module that the metrics are logged on."""
        return self._module[0]

    @torch.no_grad()
    def note(self, experience: Experience, reward_name: str) -> None:
        """Log a training step.

        Args:
            experience: Experience with the log-probabilities of the sampling policy.
            reward_name: Name of the reward in warnings about failures.
        """
        rollout = experience.rollout
        assert experience.old_log_prob_BT is not None
        log_prob_B = experience.old_log_prob_BT.sum(-1)
        scored_B, above_B = ~experience.reward.isnan(), experience.above_threshold
        everyone_B = torch.ones_like(scored_B)
        length_B = rollout.num_tokens
        means = {
            "train/reward": (experience.reward, scored_B),
            "train/augmented_reward": (
                experience.augmented_reward,
                ~experience.augmented_reward.isnan(),
            ),
            "train/kl_nats": (log_prob_B - experience.reference_log_prob, everyone_B),
            "train/entropy_nats": (-log_prob_B, everyone_B),
            "train/finished_share": (rollout.finished_B, everyone_B),
            "train/tokens_per_completion": (length_B, everyone_B),
        }
        augmentation = experience.augmentation
        if augmentation is not None:
            moved_B = (augmentation.anchor_reward_B - experience.reward).abs()
            means |= {
                "train/above_threshold_share": (above_B, everyone_B),
                "train/anchor_shift_nats": (augmentation.shift_B, above_B),
                "train/anchor_reward_difference": (moved_B, above_B),
                "train/anchor_share": (experience.is_anchor, everyone_B),
            }
            if math.isfinite(augmentation.threshold):
                self._log("train/threshold", augmentation.threshold)
        if experience.left_out_B is not None:
            means["train/left_out_share"] = (experience.left_out_B, everyone_B)
        means |= self._sampling_gap(experience)
        for name, part_B in experience.scores.components.items():
            if name != "oracle_call":  # the mean of numbers of calls says nothing
                means[f"reward/{name}"] = (part_B, ~part_B.isnan())
        # A sample that only exceeded its time has no reward and no error.
        num_errors, scores = len(experience.scores.errors), experience.scores
        equal_B, compared_B = equal_groups(experience.reward, rollout.group_B)
        shift_B = above_B if augmentation is None else augmentation.shift_B
        sums = self.over_ranks(
            [torch.where(kept_B, value_B.double(), 0.0).sum() for value_B, kept_B in means.values()]
            + [kept_B.sum() for _, kept_B in means.values()]
            + [equal_B.sum(), compared_B.sum(), torch.where(above_B, shift_B.double(), 0.0).sum()]
            + [num_failed(scores), len(scores.over_budget)]
            + [above_B.sum(), num_errors, len(rollout), _num_distinct(rollout)]
        )
        equal, compared, shift, unscored, spent, above, failed, samples, distinct = sums[-9:]
        self._num_tokens = sums[list(means).index("train/tokens_per_completion")]
        for number, name in enumerate(means):
            count = sums[len(means) + number]
            if count > 0:
                shown = name in ("train/reward", "train/kl_nats")
                self._log(name, sums[number] / count, prog_bar=shown)
        self._log("train/distinct_share", distinct / samples)
        equal_share = equal / compared if compared else None
        if equal_share is not None:
            self._log("train/equal_reward_share", equal_share)
        self._show_failure(experience, reward_name)
        self._count(int(failed), int(above), int(samples))
        self.failures.after_step(
            scores, rollout.texts, unscored > 0 and unscored == samples - spent, self.num_steps
        )
        self.tell(self.steps.after_step(equal_share, int(above), shift / max(above, 1)))
        if self.num_steps == 1:
            self.tell(
                diagnose_samples(
                    experience.reward,
                    experience.reference_log_prob,
                    rollout.group_B,
                    self.beta,
                    self.mara,
                    num_tokens_B=rollout.num_tokens,
                )
            )

    def _sampling_gap(self, experience: Experience) -> dict[str, tuple[Tensor, Tensor]]:
        """Compare scored with sampled log-probabilities, and find the weighted completions."""
        gap_BT = experience.sampling_gap
        if gap_BT is None:
            return {}
        size_BT, mask_BT = gap_BT.abs(), experience.rollout.token_mask_BT
        everyone_B = torch.ones_like(mask_BT[:, 0])
        numbers = {
            "train/sampling_gap_nats_per_token": (size_BT, mask_BT),
            "train/largest_sampling_gap_nats": (size_BT.amax(-1), everyone_B),
        }
        if self.importance_threshold is not None:
            is_weighted_B = (size_BT > self.importance_threshold).any(-1)
            numbers["train/importance_weighted_share"] = (is_weighted_B, everyone_B)
        return numbers

    def _show_failure(self, experience: Experience, reward_name: str) -> None:
        if experience.scores.errors and not self._has_shown_failure:
            self._has_shown_failure = True
            row, message = next(iter(experience.scores.errors.items()))
            warnings.warn(
                f"{reward_name} could not score {experience.rollout.texts[row]!r} "
                f"({message}). Such completions are left out and counted "
                "(reward/failed_samples); further ones are not reported",
                stacklevel=3,
            )

    def _count(self, failed: int, above: int, samples: int) -> None:
        self.num_steps += 1
        self.failed_samples += failed
        self.above_samples += above
        self._log("reward/failed_samples", float(self.failed_samples))
        if self.num_steps == _STEPS_BEFORE_WARNING:
            self.warn_of_threshold()
            self._warn_of_failures(self.num_steps * samples)
        self._samples_since += samples
        elapsed = time.perf_counter() - self._since
        if elapsed > _SECONDS_BETWEEN_RATES:
            rate = self._samples_since / elapsed
            self._log("train/samples_per_second", rate, prog_bar=True)
            self.restart_clock()

    def warn_of_threshold(self) -> None:
        """Warn, once, if no completion has reached MARA's threshold."""
        if self.mara is None or self.above_samples or self._has_warned_of_threshold:
            return
        self._has_warned_of_threshold = True
        rank_zero_warn(
            f"no completion of the first {self.num_steps} steps reached MARA's threshold "
            f"({self.mara.threshold if self.mara.percentile is None else 'a percentile'}): so far "
            "this training is the same as one without MARA. Lower model.init_args.mara.threshold, "
            "or take a percentile"
        )

    def _warn_of_failures(self, samples: int) -> None:
        if self.failed_samples > _MUCH_FAILED * samples:
            rank_zero_warn(
                f"{self.failed_samples} of about {samples} completions could not be scored in the "
                f"first {self.num_steps} steps. They are left out, so that the rest is a biased "
                "sample: the policy is not told that these are bad. Mend the reward, or return a "
                "number for them"
            )

    def tell(self, findings: Sequence[Any]) -> None:
        """Print findings about settings or samples."""
        for finding in findings:
            rank_zero_info(f"settings: {self.reworded(str(finding))}")

    def restart_clock(self) -> None:
        """Restart the measurement of samples per second."""
        self._samples_since, self._since = 0, time.perf_counter()

    def over_ranks(self, values: Sequence[Any]) -> list[float]:
        """Sum values over the processes, all in one reduction."""
        on_host = [value for value in values if not isinstance(value, Tensor)]
        sent = send(torch.tensor(on_host, dtype=torch.float64), self.module.device)
        rest = iter(sent.unbind())
        own = [value.double() if isinstance(value, Tensor) else next(rest) for value in values]
        totals: list[float] = sum_over_ranks(self.module.trainer, torch.stack(own)).tolist()
        return totals

    def log_means(self, numbers: Mapping[str, Tensor]) -> None:
        """Log the means over the processes, as `train/<name>`.

        Args:
            numbers: 0-dimensional tensors on the module's device; the same names on every process.
        """
        if not numbers:
            return
        count = self.module.trainer.world_size
        totals = self.over_ranks(list(numbers.values()))
        for name, total in zip(numbers, totals, strict=True):
            self._log(f"train/{name}", total / count)

    def log_seconds(self, seconds: Mapping[str, float]) -> None:
        """Log the seconds of the parts of a step, and its tokens per second.

        Times are those of this process, tokens those of all. The update is what the parts leave of
        the step: loss, backward pass and optimizer.

        Args:
            seconds: Of each part by its name, and of the `step`; empty if unknown.
        """
        if "step" not in seconds:
            return
        parts = {name: seconds.get(name, 0.0) for name in ("generation", "reward", "scoring")}
        whole = seconds["step"]
        for name, value in {**parts, "update": whole - sum(parts.values())}.items():
            self._log(f"train/{name}_seconds", value)
        if whole > 0:
            self._log("train/tokens_per_second", self._num_tokens / whole)

    def log_value(self, name: str, value: float) -> None:
        """Log a number that is the same on all processes, such as a sum over them."""
        self._log(name, value)

    def _log(self, name: str, value: float, prog_bar: bool = False) -> None:
        """Log a number of the host, where it stays: loggers would wait for the device."""
        self.module.log(name, torch.tensor(value, dtype=torch.float32), prog_bar=prog_bar)

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return summary rows: the number of completions that could not be scored."""
        if not self.failed_samples:
            return []
        return [("completions that could not be scored", f"{self.failed_samples:,}")]

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        counts = {name: getattr(self, name) for name in _COUNTED}
        return counts | {"in_a_row": self.failures.in_a_row, "steps": self.steps.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the counts."""
        for name in _COUNTED:
            setattr(self, name, state_dict[name])
        self.failures.in_a_row = state_dict.get("in_a_row", 0)
        if "steps" in state_dict:  # not in checkpoints of version 0.1
            self.steps.load_state_dict(state_dict["steps"])


def _num_distinct(rollout: Rollout) -> int:
    """Count the different texts of each group."""
    return len(set(zip(rollout.group_B.tolist(), rollout.texts, strict=True)))
