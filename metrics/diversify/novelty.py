"""NoveltyBench: the number of functionally different replies, and their value to a user.

Source: NoveltyBench, 2504.05228, and its code; `summarize` there averages over prompts.

Shapes: k samples of a prompt.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from triptych.metrics.diversify.prompt_metric import PromptMetric, check_samples
from triptych.metrics.diversify.same_class_judges import AnswerJudge, Judge

# Between the scores 1 to 10: raw rewards of Skywork-Reward-Gemma-2-27B-v0.2.
SKYWORK_THRESHOLDS = (
    -7.71875, -6.28125, -6.0, -5.71875, -5.5, -5.0, -4.375, -3.4375, -2.046875
)  # fmt: skip


def reward_score(reward: float, thresholds: Sequence[float] = SKYWORK_THRESHOLDS) -> int:
    """Turn a raw reward into NoveltyBench's score from 1 to 10.

    Args:
        reward: Of the reward model that the thresholds were chosen for.
        thresholds: Ascending. A reward that equals one stays below it.

    Returns:
        1 + how many thresholds lie below the reward.

    >>> reward_score(-9.0), reward_score(-6.0), reward_score(0.0)
    (1, 3, 10)
    """
    return bisect_left(thresholds, reward) + 1


def partition(texts: Sequence[str], judge: Judge) -> list[int]:
    """Sort replies into classes greedily: compare each with the first member of every class.

    Args:
        texts: The k samples of a prompt, in the order of generation.
        judge: Decides which replies are the same.

    Returns:
        The class of each, numbered from 0 in the order of first members.

    >>> partition(["Blue", "blue.", "Red", "BLUE"], AnswerJudge())
    [0, 0, 1, 0]
    """
    classes = [-1] * len(texts)
    num_classes = 0
    for start, text in enumerate(texts):
        if classes[start] >= 0:
            continue
        classes[start] = num_classes
        open_places = [i for i in range(start + 1, len(texts)) if classes[i] < 0]
        if open_places:
            verdicts = judge(text, [texts[place] for place in open_places])
            for place, is_same in zip(open_places, verdicts, strict=True):
                if is_same:
                    classes[place] = num_classes
        num_classes += 1
    return classes


def discounted_utility(
    classes: Sequence[int], scores: Sequence[float], patience: float = 0.8
) -> float:
    """Compute the value of samples to a user who reads one more with probability `patience`.

    sum_i p^i u_i / sum_i p^i for i = 0 ... k - 1 in the order of generation. u_i is the score of a
    reply that is the first of its class, and 0 for any other. (NoveltyBench, equation 3.)

    Args:
        classes: As `partition` gives them.
        scores: How good each reply is; 1 to 10 in the paper.
        patience: p.

    Returns:
        A weighted mean of scores and zeros.

    >>> discounted_utility([0, 0, 1], [10, 10, 5], patience=0.5)  # (10 + 5/4) / (7/4)
    6.428571428571429
    """
    import numpy as np

    seen: set[int] = set()
    gains = []
    for number, score in zip(classes, scores, strict=True):
        gains.append(0 if number in seen else score)
        seen.add(number)
    return float(np.average(gains, weights=patience ** np.arange(len(gains))))


class NoveltyBench(PromptMetric):
    """NoveltyBench: `distinct`, the classes among k samples, and `utility`, their value to a user.

    Both are means over prompts and grow with k, so compare at equal `num_samples` (10 in the
    paper). `distinct` lies in [1, k], with compat in [0, k - 1]. `utility` is averaged over the
    prompts that have scores.

    compat="partitions.jsonl" reproduces the field `distinct` of the benchmark's partitions.jsonl,
    which is the *largest class number* and so one less than the number of classes. Its summary and
    the paper's tables count correctly, as we do without it.

    Args:
        judge: Decides which replies are the same (`same_class_judges`); equal answers by default.
            The benchmark's is `ClassifierJudge`.
        num_samples: k: the first k samples of each prompt are used; all by default.
        patience: Probability that a user looks at one more reply.
        compat: None, or "partitions.jsonl".
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is out of range, or `compat` is not known.

    >>> metric = NoveltyBench()
    >>> metric.update([["Blue", "blue.", "Red"]], scores=[[8, 9, 4]])
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'distinct': 2.0, 'utility': 4.3279}
    """

    higher_is_better = True
    takes_scores: ClassVar[bool] = True

    def __init__(
        self,
        judge: Judge | None = None,
        num_samples: int | None = None,
        patience: float = 0.8,
        compat: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(["distinct", "utility"], **kwargs)
        if not 0 < patience <= 1 or (num_samples is not None and num_samples < 1):
            raise ValueError(
                f"patience={patience} must lie in (0, 1], num_samples={num_samples} be positive."
            )
        if compat not in (None, "partitions.jsonl"):
            raise ValueError(f"compat={compat!r} is not known: take null or 'partitions.jsonl'.")
        self.judge = judge if judge is not None else AnswerJudge()
        self.num_samples = num_samples
        self.patience = patience
        self.compat = compat

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches with scores and without."""
        return cls(), [
            ([["Oslo", "oslo!", "Rome"], ["a", "b"]], [[1, 2, 3], [10, 7]]),
            ([["x y", "x  y", "y x", "the x y"]],),
            ([["Rome"]], [[4]]),
        ]

    def update(
        self,
        samples: Sequence[Sequence[str]],
        scores: Sequence[Sequence[float]] | None = None,
    ) -> None:
        """Partition the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, in the order of generation.
            scores: How good each of them is (`reward_score`); without them these prompts have no
                utility.

        Raises:
            ValueError: If a prompt has too few samples, or another number of scores.
        """
        check_samples(samples)
        if scores is not None and [len(row) for row in scores] != [len(row) for row in samples]:
            raise ValueError("NoveltyBench needs one score for each sample of each prompt.")
        self.add_prompts(
            [
                self.measure(texts, None if scores is None else scores[number])
                for number, texts in enumerate(samples)
            ]
        )

    def measure(
        self, texts: Sequence[str], scores: Sequence[float] | None = None
    ) -> Mapping[str, float]:
        """Partition the samples of one prompt; without scores their utility is nan.

        Raises:
            ValueError: If there are too few samples.
        """
        num_kept = self.num_samples or len(texts)
        if len(texts) < num_kept:
            raise ValueError(
                f"a prompt has {len(texts)} samples, num_samples is {num_kept}: draw at least that "
                "number for every prompt, or lower num_samples."
            )
        classes = partition(texts[:num_kept], self.judge)
        num_classes = max(classes) + (0 if self.compat else 1)
        utility = math.nan
        if scores is not None:
            utility = discounted_utility(classes, scores[:num_kept], self.patience)
        return {"distinct": num_classes, "utility": utility}
