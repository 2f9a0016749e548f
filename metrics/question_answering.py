"""Closed-book question answering: exact match and token F1 against a question's accepted answers.

Normalisation, scores and edge cases are those of the official SQuAD 2.0 evaluation script
(Rajpurkar et al., 1806.03822; the scores themselves are SQuAD 1.1's, 1606.05250, section 6.1):

- a text is lower-cased, loses ASCII punctuation and the words a, an, the, and is split at white
  space; punctuation outside ASCII stays, and so do accents;
- the best score over the accepted answers counts;
- accepted answers that normalise to nothing ("The", "?!") are dropped. Only if none is left, the
  empty text is the right answer; both scores are then 1 for an empty prediction, else 0.

SQuAD 1.1 differs only in the last point: it drops no answer, and gives two empty texts an exact
match of 1 but an F1 of 0.
"""

import re
import string
import unicodedata
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric

_DROP_PUNCTUATION = str.maketrans("", "", string.punctuation)
# Bounds of a word; scripts without spaces have none.
_SPACED = r"[^\W\u0e00-\u0eff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af]"
_START, _END = rf"(?<!{_SPACED})", rf"(?!{_SPACED})"
_ARTICLE = re.compile(r"\b(a|an|the)\b")


def normalize_answer(text: str) -> str:
    """Normalise an answer.

    Args:
        text: Any text.

    Returns:
        The text in lower case, without ASCII punctuation and English articles, its words separated
        by single spaces. Punctuation goes first and leaves no gap: "the U.S.A." becomes "usa".

    >>> normalize_answer("  The Beatles' 1969  album, an LP ")
    'beatles 1969 album lp'
    """
    without_punctuation = text.lower().translate(_DROP_PUNCTUATION)
    return " ".join(_ARTICLE.sub(" ", without_punctuation).split())


def exact_match(prediction: str, answers: Sequence[str]) -> bool:
    """Test whether a prediction equals one of the accepted answers, both normalised.

    Args:
        prediction: The model's answer.
        answers: Every accepted answer (aliases), at least one.

    Returns:
        True if one of them matches.

    Raises:
        ValueError: If `answers` is empty or a single string.

    >>> exact_match("the beatles.", ["Beatles", "The Fab Four"])
    True
    >>> exact_match("Beatles band", ["Beatles", "The Fab Four"])
    False
    """
    return normalize_answer(prediction) in _normalized_answers(answers)


def answer_in_reply(prediction: str, answers: Sequence[str]) -> bool:
    """Test whether a reply names one of the accepted answers, as whole words, both normalised.

    Args:
        prediction: The model's reply, such as a sentence.
        answers: Every accepted answer, at least one.

    Raises:
        ValueError: If `answers` is empty or a single string.

    >>> answer_in_reply("The band is called the Beatles.", ["Beatles", "The Fab Four"])
    True
    >>> answer_in_reply("It was founded in 19870.", ["1987"])
    False
    """
    said = _composed(prediction)
    accepted = [_composed(answer) for answer in _normalized_answers(answers)]
    return any(
        said == answer
        or (answer != "" and re.search(rf"{_START}{re.escape(answer)}{_END}", said) is not None)
        for answer in accepted
    )


def _composed(text: str) -> str:
    """Normalise a text of any composition of letters, with typographic apostrophes."""
    return normalize_answer(unicodedata.normalize("NFC", text).replace("’", "'"))


def token_f1(prediction: str, answers: Sequence[str]) -> float:
    """Score the words that a prediction shares with the closest accepted answer.

    With `shared` the size of the intersection of both bags of words, precision is shared / words
    predicted, recall is shared / words in the answer, and F1 their harmonic mean.

    Args:
        prediction: The model's answer.
        answers: Every accepted answer (aliases), at least one.

    Returns:
        The largest F1 over the answers, in [0, 1].

    Raises:
        ValueError: If `answers` is empty or a single string.

    >>> token_f1("Ludwig Beethoven", ["Beethoven", "Ludwig van Beethoven"])
    0.8
    """
    words = normalize_answer(prediction).split()
    return max(_bag_f1(words, answer.split()) for answer in _normalized_answers(answers))


def _normalized_answers(answers: Sequence[str]) -> list[str]:
    """Normalise the accepted answers and drop the empty ones, unless nothing else is accepted."""
    if isinstance(answers, str):
        raise ValueError(
            f"answers must be a sequence of accepted answers, got the string {answers!r}: "
            "put it into a list."
        )
    if not answers:
        raise ValueError(
            "answers is empty: give at least one accepted answer per question "
            "([''] where the right answer is no answer)."
        )
    return [normalized for answer in answers if (normalized := normalize_answer(answer))] or [""]


def _bag_f1(predicted_words: list[str], answer_words: list[str]) -> float:
    if not predicted_words or not answer_words:
        return float(predicted_words == answer_words)
    num_shared = (Counter(predicted_words) & Counter(answer_words)).total()
    return 2 * num_shared / (len(predicted_words) + len(answer_words))


class _MeanOverQuestions(SummedMetric):
    """The mean of a score over all questions seen, on all ranks."""

    higher_is_better = True
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0
    score_sum: Tensor
    num_questions: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("score_sum", torch.float64)
        self.add_sum("num_questions", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of unequal size, one of them empty."""
        return cls(), [
            (["Paris", "the  Nile!", ""], [["paris"], ["Nile River", "Nile"], ["Au", "gold"]]),
            (["Ludwig Beethoven"], [["Ludwig van Beethoven", "Beethoven"]]),
            ([], []),
        ]

    @staticmethod
    @abstractmethod
    def score(prediction: str, answers: Sequence[str]) -> float:
        """Score one prediction."""

    def update(self, predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
        """Score a batch.

        Args:
            predictions: One predicted answer per question.
            answers: Every accepted answer of each question, in the same order.

        Raises:
            ValueError: If the two differ in length, or a question has no accepted answer.
        """
        if len(predictions) != len(answers):
            raise ValueError(
                f"{type(self).__name__} got {len(predictions)} predictions for {len(answers)} "
                "questions: give one prediction and one list of accepted answers per question."
            )
        pairs = zip(predictions, answers, strict=True)
        self.score_sum = self.score_sum + sum(self.score(*pair) for pair in pairs)
        self.num_questions = self.num_questions + len(predictions)

    def compute(self) -> Tensor:
        """Return the mean score in [0, 1] as a float64 scalar; nan before the first question."""
        return self.score_sum / self.num_questions


class ExactMatch(_MeanOverQuestions):
    """The share of questions answered with exactly one of the accepted answers.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = ExactMatch()
    >>> metric.update(["Paris", "the Rhine"], [["paris"], ["Nile", "The Nile"]])
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    score = staticmethod(exact_match)


class TokenF1(_MeanOverQuestions):
    """The mean, over questions, of the token F1 against the closest accepted answer.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = TokenF1()
    >>> metric.update(["Paris", "Ludwig Beethoven"], [["paris"], ["Ludwig van Beethoven"]])
    >>> metric.compute()
    tensor(0.9000, dtype=torch.float64)
    """

    score = staticmethod(token_f1)


class AnswerInReply(_MeanOverQuestions):
    """The share of replies that name one of the accepted answers.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = AnswerInReply()
    >>> metric.update(["It is Paris.", "It is Rome."], [["Paris"], ["Nile", "The Nile"]])
    >>> metric.compute()
    tensor(0.5000, dtype=torch.float64)
    """

    score = staticmethod(answer_in_reply)
