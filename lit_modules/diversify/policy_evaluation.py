"""Metrics of a validation pass over held-out prompts: reward, KL, diversity, modes."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.lit_modules.diversify.answer_shares import MOST_ANSWERS, AnswerShares
from triptych.metrics.completion_means import CompletionMeans
from triptych.metrics.diversify.distinct_answers import DistinctAnswers, TaggedAnswer
from triptych.metrics.diversify.mode_coverage import ModeCoverage
from triptych.metrics.diversify.prompt_metric import PromptMetric, samples_by_group
from triptych.metrics.diversify.right_at_k import RightAtK
from triptych.metrics.diversify.text_diversity import DistinctNgrams
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.rewards.answer_in_set import AnswerInSet
from triptych.objectives.rewards.base import Reward
from triptych.objectives.rewards.composed import ComposedReward

# Shapes: B completions, k completions of a prompt

#: Measures of every completion.
MEANS = ("reward", "kl_nats", "entropy_nats", "finished_share", "tokens_per_completion")
#: Key in `mode_counts` of answers that are not known ones.
NO_MODE = "(none of them)"


class AnswerMode:
    """Finds the known answer that a completion gives, read as its reward reads it.

    Args:
        read_answer: Reads a completion's answer.
    """

    def __init__(self, read_answer: TaggedAnswer) -> None:
        self.read_answer = read_answer

    def __call__(self, text: str, modes: Sequence[Sequence[str]]) -> int | None:
        """Return the number of the mode with this answer as a name, or None."""
        answer = self.read_answer(text)
        if answer is None:
            return None
        normal = TaggedAnswer()
        known = {normal(name): place for place, names in enumerate(modes) for name in names}
        return known.get(answer)


class PolicyEvaluation:
    """Collects a validation epoch over all ranks, separately for each set of held-out prompts.

    Always measured: reward, KL to the reference and entropy (both of whole completions, estimated
    from the samples), share of finished completions, distinct-n. If the reward is an `AnswerInSet`
    (or contains one) and a prompt lists its answers: entropy and coverage of these, and the numbers
    of different answers and of different right ones among the k samples. If all prompts of a set
    share a few answers: the share of each, `answer_share/<answer>`. If it is known which rewards
    are right: pass@k, maj@k, and the numbers of different right answers and solutions
    (`RightAtK`).

    KL and entropy use the log-probabilities of sampling. In half precision these differ from those
    of scoring, and the KL is too high by the divergence of the two: about half the squared
    `train/sampling_gap_nats_per_token` a token, some 1e-4 nats. `train/kl_nats` uses scoring's.

    Args:
        reward: The reward, which defines how answers are read.
        metrics: Further metrics of samples.
        num_tables: Completions of each set kept for the table.
        right_reward: Least reward of a right completion; None: 1 if the reward is an
            `AnswerInSet`, else none is called right.
        num_samples: Completions of each prompt, the largest k of pass@k.

    Attributes:
        samples: Rows of a table of completions.
        mode_counts: Set -> category -> count of each known answer, on this rank.
    """

    def __init__(
        self,
        reward: Reward,
        metrics: Sequence[PromptMetric],
        num_tables: int,
        right_reward: float | None = None,
        num_samples: int = 10,
    ) -> None:
        self.answers = answers_of(reward)
        self.further = list(metrics)
        if right_reward is None and isinstance(reward, AnswerInSet):
            right_reward = 1.0
        self.right_reward = right_reward
        self.num_samples = num_samples
        self.num_tables = num_tables
        self.device = torch.device("cpu")
        self.metrics: dict[str, Metric] = {}
        self.samples: list[dict[str, Any]] = []
        self.mode_counts: dict[str, dict[str, Counter[str]]] = {}

    def reset(self, device: torch.device) -> None:
        """Start an epoch, with states on a device on which all ranks can communicate."""
        self.device = device
        self.samples, self.mode_counts = [], {}
        for metric in self.metrics.values():
            metric.reset()

    def prepare(self, name: str, record: Mapping[str, Any]) -> None:
        """Create the metrics of a set; call it on every rank, even one without prompts of the set.

        Args:
            name: Name of the set.
            record: One of its prompts.
        """
        self._metric(f"{name}/", lambda: CompletionMeans(MEANS))
        self._metric(f"{name}/words", lambda: DistinctNgrams(sizes=[1, 2], overall=False))
        for number, metric in enumerate(self.further):
            self._metric(f"{name}/#{number}", metric.clone)
        if self.right_reward is not None:
            self._metric(f"{name}/right", self._right_at_k)
        if self.answers is not None and record.get(self.answers.field):
            read = TaggedAnswer(self.answers.tag)
            self._metric(f"{name}/answers", lambda: DistinctAnswers(read))
            self._metric(f"{name}/modes", lambda: ModeCoverage(find_mode=AnswerMode(read)))
            answers = list(record[self.answers.field])
            if len(answers) <= MOST_ANSWERS:
                self._metric(f"{name}/shares", lambda: AnswerShares(answers))

    def add(self, name: str, experience: Experience) -> None:
        """Add the completions of some prompts of the prepared set `name`."""
        rollout = experience.rollout
        values = (
            experience.reward,
            rollout.log_prob_B - experience.reference_log_prob,
            -rollout.log_prob_B,
            rollout.finished_B,
            rollout.num_tokens,
        )
        self.metrics[f"{name}/"].update(dict(zip(MEANS, values, strict=True)))
        samples = samples_by_group(rollout.texts, rollout.group_B)
        scores = _by_group(experience.reward, rollout.group_B)
        self.metrics[f"{name}/words"].update(samples)
        for number, metric in enumerate(self.further):
            options = {"scores": scores} if metric.takes_scores else {}
            self.metrics[f"{name}/#{number}"].update(samples, **options)
        if self.right_reward is not None:
            self.metrics[f"{name}/right"].update(samples, scores=scores)
        self._add_answers(name, experience, samples)
        room = max(0, self.num_tables - sum(row["set"] == name for row in self.samples))
        self.samples += completion_rows(experience, name)[:room]

    def _add_answers(
        self, name: str, experience: Experience, samples: Sequence[Sequence[str]]
    ) -> None:
        if self.answers is None or f"{name}/answers" not in self.metrics:
            return
        records = experience.rollout.records
        first = _first_rows(experience.rollout.group_B)
        known = [list(records[row][self.answers.field]) for row in first]
        self.metrics[f"{name}/answers"].update(samples, known)
        self.metrics[f"{name}/modes"].update(samples, known)
        of_set = self.mode_counts.setdefault(name, {})
        find = AnswerMode(TaggedAnswer(self.answers.tag))
        for row, texts, modes in zip(first, samples, known, strict=True):
            category = str(records[row].get("category") or "all")
            counts = of_set.setdefault(category, Counter(dict.fromkeys([*modes, NO_MODE], 0)))
            found = [find(text, [[answer] for answer in modes]) for text in texts]
            own = Counter(NO_MODE if mode is None else modes[mode] for mode in found)
            counts.update(own)
            if f"{name}/shares" in self.metrics:
                self.metrics[f"{name}/shares"].update(modes, own, len(texts))

    def compute(self) -> dict[str, Tensor]:
        """Compute all numbers of the epoch, by log key; a collective under DDP."""
        values: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            prefix = f"val/{name.rpartition('/')[0]}/"
            values |= {prefix + key: value.float() for key, value in metric.compute().items()}
        return values

    def entropy_over_prompts(self) -> dict[str, float]:
        """Compute the entropy in bits of each set's known answers, over all its prompts together.

        Only for sets with one category, where all prompts have the same answers: there the samples
        of all prompts estimate one distribution. Counts this rank's prompts.
        """
        bits = {}
        for name, of_set in self.mode_counts.items():
            if len(of_set) == 1:
                (counts,) = of_set.values()
                known = torch.tensor(
                    [float(n) for k, n in counts.items() if k != NO_MODE], dtype=torch.float32
                )
                if known.sum() > 0:
                    share = known / known.sum()
                    bits[name] = float(-(share * share.clamp_min(1e-30).log2()).sum())
        return bits

    def _right_at_k(self) -> RightAtK:
        """Build pass@k for 1, 4, 16 ... and all samples."""
        assert self.right_reward is not None
        ks = [4**i for i in range(16) if 4**i < self.num_samples] + [self.num_samples]
        read = None if self.answers is None else TaggedAnswer(self.answers.tag)
        return RightAtK(ks, self.right_reward, read)

    def _metric(self, name: str, make: Callable[[], Metric]) -> None:
        if name not in self.metrics:
            self.metrics[name] = make().to(self.device)


def answers_of(reward: Reward) -> AnswerInSet | None:
    """Return the `AnswerInSet` that the reward is or contains; None without one."""
    if isinstance(reward, AnswerInSet):
        return reward
    if isinstance(reward, ComposedReward):
        return next(filter(None, map(answers_of, reward.rewards)), None)
    return None


def completion_rows(experience: Experience, name: str) -> list[dict[str, Any]]:
    """Make a table of completions, one row each, with rewards and anchors."""
    rollout = experience.rollout
    columns = zip(
        rollout.prompts,
        rollout.texts,
        experience.reward.tolist(),
        experience.reference_log_prob.tolist(),
        experience.augmented_reward.tolist(),
        experience.above_threshold.tolist(),
        experience.is_anchor.tolist(),
        strict=True,
    )
    return [
        {
            "set": name,
            "prompt": prompt,
            "completion": text,
            "reward": round(reward, 6),
            "reference_log_prob_nats": round(reference, 4),
            "augmented_reward": round(augmented, 6),
            "above_threshold": above,
            "anchor": "anchor" if anchor else "",
        }
        for prompt, text, reward, reference, augmented, above, anchor in columns
    ]


def _first_rows(group_B: Tensor) -> list[int]:
    seen: dict[int, int] = {}
    for row, group in enumerate(group_B.tolist()):
        seen.setdefault(group, row)
    return list(seen.values())


def _by_group(values_B: Tensor, group_B: Tensor) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    for value, group in zip(values_B.tolist(), group_B.tolist(), strict=True):
        groups.setdefault(group, []).append(value)
    return list(groups.values())
