"""Multiple choice: the most likely ending under a model, in total and per byte.

Both rules are those of the LM Evaluation Harness. Its `acc` takes the largest log-likelihood. The
length-normalised rule divides it by the length of the ending (without the space before it): with
its characters this is the harness's `acc_norm`, with its UTF-8 bytes `acc_bytes`.

Shapes: Q questions, E endings of a question.
"""

from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric


def likeliest_ending(nll_nats: Sequence[float], num_bytes: Sequence[int] | None = None) -> int:
    """Choose the ending with the smallest negative log-likelihood, per byte if these are given.

    Args:
        nll_nats: Negative log-likelihood of each ending, given the question.
        num_bytes: UTF-8 bytes of each ending.

    Returns:
        Its index; of equal ones the first.

    >>> likeliest_ending([3.0, 4.0]), likeliest_ending([3.0, 4.0], num_bytes=[2, 8])
    (0, 1)
    """
    lengths = [1] * len(nll_nats) if num_bytes is None else num_bytes
    costs = [nats / length for nats, length in zip(nll_nats, lengths, strict=True)]
    return min(range(len(costs)), key=costs.__getitem__)


class MultipleChoice(SummedMetric):
    """The share of questions where the right ending is the most likely, and its likelihood.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = MultipleChoice()
    >>> metric.update([[3.0, 4.0], [1.0, 2.0]], [[2, 8], [5, 5]], [[1, 2], [2, 2]], [1, 0])
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'accuracy': 0.5, 'length_normalized_accuracy': 1.0, 'right_nll_nats_per_token': 1.25}
    """

    num_right: Tensor
    num_right_per_byte: Tensor
    right_nll_nats: Tensor
    right_num_tokens: Tensor
    num_questions: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("num_right", torch.int64)
        self.add_sum("num_right_per_byte", torch.int64)
        self.add_sum("right_nll_nats", torch.float64)
        self.add_sum("right_num_tokens", torch.int64)
        self.add_sum("num_questions", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of questions with different numbers of endings."""
        return cls(), [
            ([[3.0, 4.0], [1.0, 2.0, 0.5]], [[2, 8], [5, 5, 4]], [[1, 2], [2, 2, 1]], [1, 0]),
            ([[2.5, 7.0]], [[9, 9]], [[3, 3]], [0]),
            ([], [], [], []),
        ]

    def update(
        self,
        nll_nats: Sequence[Sequence[float]],
        num_bytes: Sequence[Sequence[int]],
        num_tokens: Sequence[Sequence[int]],
        labels: Sequence[int],
    ) -> None:
        """Add a batch of questions, possibly with different numbers of endings.

        Args:
            nll_nats: Negative log-likelihood of each ending of each question.
            num_bytes: UTF-8 bytes of each ending.
            num_tokens: Tokens of each ending.
            labels: Index of the right ending of each question.

        Raises:
            ValueError: If lengths differ, or a label names no ending.
        """
        if not len(nll_nats) == len(num_bytes) == len(num_tokens) == len(labels):
            raise ValueError(
                f"MultipleChoice got {len(nll_nats)}, {len(num_bytes)} and {len(num_tokens)} "
                f"questions for {len(labels)} labels: give the endings of each question, and its "
                "label."
            )
        for nats, lengths, counts, label in zip(
            nll_nats, num_bytes, num_tokens, labels, strict=True
        ):
            if not len(nats) == len(lengths) == len(counts) or not 0 <= label < len(nats):
                raise ValueError(
                    f"a question has {len(nats)} likelihoods, {len(lengths)} lengths and "
                    f"{len(counts)} token counts with label {label}: give one of each for every "
                    "ending, and the place of the right one."
                )
        rows = list(zip(nll_nats, num_bytes, num_tokens, labels, strict=True))
        chosen = [likeliest_ending(nats) == label for nats, _, _, label in rows]
        per_byte = [likeliest_ending(nats, sizes) == label for nats, sizes, _, label in rows]
        self.num_right = self.num_right + sum(chosen)
        self.num_right_per_byte = self.num_right_per_byte + sum(per_byte)
        self.right_nll_nats = self.right_nll_nats + sum(
            float(nats[label]) for nats, *_, label in rows
        )
        self.right_num_tokens = self.right_num_tokens + sum(
            int(counts[label]) for *_, counts, label in rows
        )
        self.num_questions = self.num_questions + len(rows)

    def compute(self) -> dict[str, Tensor]:
        """Divide the sums of all ranks.

        Returns:
            Float64 scalars, nan before the first question. `accuracy`, `length_normalized_accuracy`
            (per byte): shares of questions in [0, 1]. `right_nll_nats_per_token`: over the tokens
            of all right endings.
        """
        num_questions = self.num_questions.double()
        return {
            "accuracy": self.num_right / num_questions,
            "length_normalized_accuracy": self.num_right_per_byte / num_questions,
            "right_nll_nats_per_token": self.right_nll_nats / self.right_num_tokens,
        }
