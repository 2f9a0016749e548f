"""What k samples of a prompt are worth: pass@k, maj@k, different right answers and solutions.

Shapes: n samples of a prompt, of which c are right.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Self

from triptych.metrics.diversify.distinct_answers import ReadAnswer, TaggedAnswer
from triptych.metrics.diversify.prompt_metric import PromptMetric, check_samples
from triptych.objectives.rewards.answer_text import normalized

ReadSolution = Callable[[str], str]


def pass_at_k(num_samples: int, num_right: int, k: int) -> float:
    """Estimate the probability that at least one of k samples is right: 1 - C(n - c, k) / C(n, k).

    The estimate is unbiased: it is the share of the subsets of k that hold a right sample.

    Args:
        num_samples: n.
        num_right: c.
        k: At least 1; with k > n the result is nan.

    Source: "Evaluating Large Language Models Trained on Code", 2107.03374, equation 1.

    >>> pass_at_k(4, 1, 2)  # 1 - 3 / 6
    0.5
    """
    if k > num_samples:
        return math.nan
    return 1 - math.comb(num_samples - num_right, k) / math.comb(num_samples, k)


def distinct_at_k(num_samples: int, counts: Sequence[int], k: int) -> float:
    """Estimate the number of different things among k samples, without bias.

    Each of them is found with the probability that `pass_at_k` estimates.

    Args:
        num_samples: n.
        counts: How many of the n samples show each thing.
        k: At least 1; with k > n the result is nan.

    >>> distinct_at_k(3, [1, 1], 2)  # each is in 2 of 3 pairs
    1.3333333333333335
    """
    if k > num_samples:
        return math.nan
    return math.fsum(pass_at_k(num_samples, count, k) for count in counts)


def majority_at_k(answers: Sequence[str | None], is_right: Sequence[bool], k: int) -> float:
    """Estimate the probability that the most frequent answer of k samples is right.

    The samples are cut into n // k blocks of k, in their order; further ones are left out. Of
    answers that are equally frequent one is taken by chance, so a block counts with the share of
    right ones among them; a block without an answer counts as wrong.

    Args:
        answers: The answer of each sample; None where it gives none.
        is_right: Whether each sample is right; the first sample with an answer decides for it.
        k: At least 1; with k > n the result is nan.

    >>> majority_at_k(["2", "3", "2", "3"], [True, False, True, False], 4)
    0.5
    """
    if k > len(answers):
        return math.nan
    values = []
    for start in range(0, len(answers) - k + 1, k):
        block = range(start, start + k)
        right_of: dict[str, bool] = {}
        votes: Counter[str] = Counter()
        for place in block:
            answer = answers[place]
            if answer is not None:
                right_of.setdefault(answer, is_right[place])
                votes[answer] += 1
        top = [answer for answer, count in votes.items() if count == max(votes.values())]
        values.append(sum(right_of[answer] for answer in top) / len(top) if top else 0.0)
    return math.fsum(values) / len(values)


class CalculationSteps:
    """Reads a solution as its calculations, so that other words around them do not count.

    >>> CalculationSteps()("First 2 + 3 = 5. Then 5*4 =20!"), CalculationSteps()("It is 20.")
    ('2+3=5 5*4=20', 'it is 20')
    """

    _EQUATION = re.compile(r"[-+(]*\d[\d.,\s()/*x×÷+-]*=\s*[-$]*\d[\d.,]*")

    def __call__(self, text: str) -> str:
        """Return the equations of a text, in their order; without one its normalised words."""
        found = [re.sub(r"[\s,$]", "", step) for step in self._EQUATION.findall(text)]
        steps = [step.rstrip(".").replace("×", "*").replace("x", "*") for step in found]
        return " ".join(steps) or normalized(text)


class RightAtK(PromptMetric):
    """What k samples of a prompt are worth, for several k, averaged over prompts.

    A sample is right if its score is at least `right_score`; samples whose scoring failed are left
    out of n. Values for k above n are nan, so prompts with too few samples do not count for them.

    - `pass_at_<k>`: probability that one of k samples is right (`pass_at_k`, unbiased);
    - `maj_at_<k>`: probability that the most frequent answer of k is right (`majority_at_k`);
    - `distinct_right_answers_at_<k>`: number of different answers of right samples among k;
    - `distinct_right_solutions_at_<k>`: number of different ways to a right answer among k, that
      is, of texts that `read_solution` tells apart.

    For k = 1 there is only `pass_at_1`, the share of right samples, since the rest follows from it.

    Args:
        ks: The numbers of samples, each at least 1.
        right_score: Least score of a right sample.
        read_answer: Reads the answer of a text, or None; a picklable callable. None: the whole
            text, normalised.
        read_solution: Reads what tells solutions apart; a picklable callable such as
            `CalculationSteps`. None: the whole text, normalised.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If there is no k, or one below 1.

    >>> metric = RightAtK(ks=[1, 2])
    >>> metric.update([["4", "4", "5", "four"]], scores=[[1, 1, 0, 1]])
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'pass_at_1': 0.75, 'pass_at_2': 1.0, 'maj_at_2': 0.75,
     'distinct_right_answers_at_2': 1.3333, 'distinct_right_solutions_at_2': 1.3333}
    """

    takes_scores: ClassVar[bool] = True

    def __init__(
        self,
        ks: Sequence[int] = (1, 4, 16),
        right_score: float = 1.0,
        read_answer: ReadAnswer | None = None,
        read_solution: ReadSolution | None = None,
        **kwargs: Any,
    ) -> None:
        if not ks or min(ks) < 1:
            raise ValueError(f"ks is {list(ks)}: give numbers of samples of at least 1.")
        self.ks = sorted(set(ks))
        names = []
        for k in self.ks:
            names.append(f"pass_at_{k}")
            if k > 1:
                names += [f"maj_at_{k}", f"distinct_right_answers_at_{k}"]
                names.append(f"distinct_right_solutions_at_{k}")
        super().__init__(names, **kwargs)
        self.right_score = right_score
        self.read_answer = read_answer or TaggedAnswer()
        self.read_solution = read_solution or normalized

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of prompts with few and many samples."""
        return cls(ks=[1, 2, 3]), [
            ([["1", "2", "one", "1"], ["3"]], [[1.0, 0.0, 1.0, 1.0], [0.0]]),
            ([["a", "b", "b", ""]], [[1.0, math.nan, 0.0, 1.0]]),
            ([], []),
        ]

    def update(
        self, samples: Sequence[Sequence[str]], scores: Sequence[Sequence[float]] | None = None
    ) -> None:
        """Measure the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, at least one per prompt.
            scores: The score of each of them; nan where scoring failed.

        Raises:
            ValueError: If there is not one score for each sample.
        """
        check_samples(samples)
        if scores is None or [len(s) for s in scores] != [len(texts) for texts in samples]:
            raise ValueError("RightAtK needs a score for each sample: they say which are right.")
        pairs = zip(samples, scores, strict=True)
        self.add_prompts([self.measure(texts, of_prompt) for texts, of_prompt in pairs])

    def measure(
        self, texts: Sequence[str], scores: Sequence[float] | None = None
    ) -> Mapping[str, float]:
        """Measure the samples of one prompt by their scores."""
        if scores is None:
            raise ValueError("RightAtK needs a score for each sample: they say which are right.")
        pairs = zip(texts, scores, strict=True)
        scored = [(text, score >= self.right_score) for text, score in pairs if score == score]
        answers = [self.read_answer(text) for text, _ in scored]
        is_right = [right for _, right in scored]
        right_answers = Counter(
            answer for answer, right in zip(answers, is_right, strict=True) if right and answer
        )
        solutions = Counter(self.read_solution(text) for text, right in scored if right)
        num, values = len(scored), {}
        for k in self.ks:
            values[f"pass_at_{k}"] = pass_at_k(num, sum(is_right), k)
            if k > 1:
                values[f"maj_at_{k}"] = majority_at_k(answers, is_right, k)
                values[f"distinct_right_answers_at_{k}"] = distinct_at_k(
                    num, list(right_answers.values()), k
                )
                values[f"distinct_right_solutions_at_{k}"] = distinct_at_k(
                    num, list(solutions.values()), k
                )
        return values
