"""What a validation pass over held-out prompts adds up to: reward, distance, diversity, modes."""

import inspect
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from triptych.metrics.completion_means import CompletionMeans
from triptych.metrics.diversify.distinct_answers import DistinctAnswers, TaggedAnswer
from triptych.metrics.diversify.mode_coverage import ModeCoverage
from triptych.metrics.diversify.prompt_metric import samples_by_group
from triptych.metrics.diversify.text_diversity import DistinctNgrams
from triptych.objectives.diversify.experience import Experience
from triptych.objectives.rewards.answer_in_set import AnswerInSet
from triptych.objectives.rewards.base import Reward
from triptych.objectives.rewards.composed import ComposedReward

# Shapes: B completions, k completions of a prompt

#: What is measured of every completion.
MEANS = ("reward", "kl_nats", "entropy_nats", "finished_share", "tokens_per_completion")
#: Answers that are none of the known ones, in `mode_counts`.
NO_MODE = "(none of them)"


class AnswerMode:
    """Finds the known answer that a completion gives, by the rules of its reward.

    Args:
        read_answer: Reads a completion's answer.
    """

    def __init__(self, read_answer: TaggedAnswer) -> None:
        self.read_answer = read_answer

    def __call__(self, text: str, modes: Sequence[Sequence[str]]) -> int | None:
        """Number of the mode whose name the answer is, or None."""
        answer = self.read_answer(text)
        if answer is None:
            return None
        normal = TaggedAnswer()
        known = {normal(name): place for place, names in enumerate(modes) for name in names}
        return known.get(answer)


class PolicyEvaluation:
    """Collects a validation epoch over all ranks, apart for each set of held-out prompts.

    Always: reward, KL to the reference and entropy (both of whole completions, estimated from the
    samples), share of completions that ended, distinct-n. Where the reward is an `AnswerInSet` (or
    has one as its part) and a prompt lists its answers: entropy and coverage of these, different
    answers and different right ones among the k samples.

    Args:
        reward: The reward, to find out how answers are read.
        metrics: Further metrics of samples. `update(samples)` gets the texts of each prompt; one
            that takes `scores` gets their rewards too.
        num_tables: Completions kept for the table from each set.

    Attributes:
        samples: Rows of a table of completions.
        mode_counts: Set -> category -> how often each known answer was given, on this rank.
    """

    def __init__(self, reward: Reward, metrics: Sequence[Metric], num_tables: int) -> None:
        self.answers = answers_of(reward)
        self.further = list(metrics)
        self.num_tables = num_tables
        self.device = torch.device("cpu")
        self.metrics: dict[str, Metric] = {}
        self.samples: list[dict[str, Any]] = []
        self.mode_counts: dict[str, dict[str, Counter[str]]] = {}

    def reset(self, device: torch.device) -> None:
        """Begin an epoch, with sums kept on a device that all ranks can exchange."""
        self.device = device
        self.samples, self.mode_counts = [], {}
        for metric in self.metrics.values():
            metric.reset()

    def prepare(self, name: str, record: Mapping[str, Any]) -> None:
        """Make the metrics of a set, on every rank, whether it has prompts of it or not.

        Args:
            name: The set.
            record: One of its prompts.
        """
        self._metric(f"{name}/", lambda: CompletionMeans(MEANS))
        self._metric(f"{name}/words", lambda: DistinctNgrams(sizes=[1, 2], overall=False))
        for number, metric in enumerate(self.further):
            self._metric(f"{name}/#{number}", metric.clone)
        if self.answers is not None and record.get(self.answers.field):
            read = TaggedAnswer(self.answers.tag)
            self._metric(f"{name}/answers", lambda: DistinctAnswers(read))
            self._metric(f"{name}/modes", lambda: ModeCoverage(find_mode=AnswerMode(read)))

    def add(self, name: str, experience: Experience) -> None:
        """Count the completions of some prompts of the set `name`, once it was prepared."""
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
        for number in range(len(self.further)):
            metric = self.metrics[f"{name}/#{number}"]
            takes_scores = "scores" in inspect.signature(metric.update).parameters
            metric.update(samples, **({"scores": scores} if takes_scores else {}))
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
            for text in texts:
                mode = find(text, [[answer] for answer in modes])
                counts[NO_MODE if mode is None else modes[mode]] += 1

    def compute(self) -> dict[str, Tensor]:
        """Every number of the epoch under its log key; a collective under DDP."""
        values: dict[str, Tensor] = {}
        for name, metric in self.metrics.items():
            result = metric.compute()
            if isinstance(result, dict):
                prefix = f"val/{name.rpartition('/')[0]}/"
                values |= {prefix + key: value for key, value in result.items()}
            else:
                values[f"val/{name.rpartition('/')[0]}/{type(metric).__name__}"] = result
        return {name: value.float() for name, value in values.items()}

    def entropy_over_prompts(self) -> dict[str, float]:
        """Entropy in bits of the known answers of each set, samples of all prompts together.

        Only for sets whose prompts all have the same answers (one category): there ten samples of
        each of many prompts say more than ten can. Of this rank's prompts.
        """
        bits = {}
        for name, of_set in self.mode_counts.items():
            if len(of_set) == 1:
                (counts,) = of_set.values()
                known = torch.tensor([float(n) for k, n in counts.items() if k != NO_MODE])
                if known.sum() > 0:
                    share = known / known.sum()
                    bits[name] = float(-(share * share.clamp_min(1e-30).log2()).sum())
        return bits

    def _metric(self, name: str, make: Callable[[], Metric]) -> None:
        if name not in self.metrics:
            self.metrics[name] = make().to(self.device)


def answers_of(reward: Reward) -> AnswerInSet | None:
    """The reward, or the part of it, that knows right answers."""
    if isinstance(reward, AnswerInSet):
        return reward
    if isinstance(reward, ComposedReward):
        return next(filter(None, map(answers_of, reward.rewards)), None)
    return None


def completion_rows(experience: Experience, name: str) -> list[dict[str, Any]]:
    """Completions as rows of a table: what was said, what it earned, who the anchor was."""
    rollout, augmentation = experience.rollout, experience.augmentation
    columns = zip(
        rollout.prompts,
        rollout.texts,
        experience.reward.tolist(),
        experience.reference_log_prob.tolist(),
        augmentation.reward_B.tolist(),
        augmentation.above_B.tolist(),
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
