"""The number of different answers among the samples of a prompt, and of right ones.

Shapes: k samples of a prompt.
"""

from collections.abc import Callable, Sequence
from typing import Any, Self

from triptych.metrics.diversify.prompt_metric import PromptMeans, check_samples
from triptych.objectives.rewards.answer_text import normalized, within_tag

ReadAnswer = Callable[[str], str | None]


class TaggedAnswer:
    """Reads the answer of a completion as `AnswerInSet` does.

    Args:
        tag: The XML element that the completion has to be; None: the whole completion is the
            answer.

    >>> TaggedAnswer("answer")("<answer>2</answer>"), TaggedAnswer("answer")("2")
    ('2', None)
    """

    def __init__(self, tag: str | None = None) -> None:
        self.tag = tag

    def __call__(self, text: str) -> str | None:
        """Return the normalised answer; None where there is none."""
        given = text if self.tag is None else within_tag(text, self.tag)
        return (normalized(given) or None) if given is not None else None


class DistinctAnswers(PromptMeans):
    """The number of different answers among a prompt's k samples, averaged over prompts.

    - `distinct_answers`: different answers, right or wrong; samples without an answer are left out;
    - `distinct_right_answers`: different answers that are in the prompt's list of right answers;
    - `right_share`: share of the k samples that give an answer of that list.

    Counts grow with k, so compare at equal k.

    Args:
        read_answer: Reads the answer of a text, or None; a picklable callable.
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = DistinctAnswers()
    >>> metric.update([["Pear.", "a pear", "plum", "stone"]], [["pear", "plum", "fig"]])
    >>> {name: value.item() for name, value in metric.compute().items()}
    {'distinct_answers': 3.0, 'distinct_right_answers': 2.0, 'right_share': 0.75}
    """

    NAMES = ("distinct_answers", "distinct_right_answers", "right_share")

    def __init__(self, read_answer: ReadAnswer | None = None, **kwargs: Any) -> None:
        super().__init__(self.NAMES, **kwargs)
        self.read_answer = read_answer or TaggedAnswer()

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of unequal prompts."""
        return cls(), [
            ([["one", "two", "One.", "four"], ["three"]], [["one", "two"], ["one"]]),
            ([["", "two"]], [["two"]]),
            ([], []),
        ]

    def update(self, samples: Sequence[Sequence[str]], answers: Sequence[Sequence[str]]) -> None:
        """Count the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, at least one per prompt.
            answers: The right answers of each prompt.

        Raises:
            ValueError: If there is not one list of answers per prompt.
        """
        check_samples(samples)
        if len(samples) != len(answers):
            raise ValueError(
                f"DistinctAnswers got samples of {len(samples)} prompts and answers of "
                f"{len(answers)}: give the right answers of each prompt."
            )
        rows = []
        for texts, right in zip(samples, answers, strict=True):
            known = {normalized(answer) for answer in right}
            given = [answer for answer in map(self.read_answer, texts) if answer is not None]
            hits = [answer for answer in given if answer in known]
            counts = (len(set(given)), len(set(hits)), len(hits) / len(texts))
            rows.append(dict(zip(self.NAMES, counts, strict=True)))
        self.add_prompts(rows)
