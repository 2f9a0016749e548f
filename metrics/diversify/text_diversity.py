"""The share of different n-grams in texts: distinct-n, its expectation-adjusted form, their sum.

N is the number of different n-grams, C that of all. If a reference implementation differs from the
formula given here, `compat` reproduces it to the last digit, including its errors.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np

from triptych.metrics.diversify.prompt_metric import PooledTextMetric
from triptych.metrics.words import ngrams, word_rule

_EXAMPLE_BATCHES = [
    ([["a b a b", "b a. c"], ["the cat sat", "the cat sat"]], [0, 1]),
    ([["one"]], [3]),
    ([["Ünder the  sea\n", "under the sea", ""]], [2]),
    ([], []),
]


def distinct_share(word_lists: Sequence[Sequence[str]], n: int) -> float:
    """Compute the share of different n-grams, N / C; n-grams never cross texts.

    Args:
        word_lists: The words of each text.
        n: Number of words of an n-gram.

    Returns:
        A number in [0, 1]; 0 if no text has n words.

    Source: A Diversity-Promoting Objective Function, 1510.03055, section 5.2 (distinct-1, -2).

    >>> distinct_share([["a", "b", "a"], ["a", "b"]], 2)  # a b, b a, a b
    0.6666666666666666
    """
    found = [gram for words in word_lists for gram in ngrams(words, n)]
    return len(set(found)) / len(found) if found else 0.0


def expectation_adjusted_share(num_different: int, num_ngrams: int, num_possible: float) -> float:
    """Divide the number of different n-grams by its expectation for V equally likely n-grams.

    EAD = N / (V (1 - ((V - 1) / V)^C)), computed as N / (-V expm1(C log1p(-1 / V))), which is
    accurate for large V.

    Args:
        num_different: N.
        num_ngrams: C.
        num_possible: V, above 1.

    Returns:
        A positive number, about 1 for uniform random words; 0 without n-grams.

    Source: Rethinking and Refining the Distinct Metric, 2202.13587, equation 5.

    >>> expectation_adjusted_share(3, 4, 2)  # 3 / (2 (1 - 1/16))
    1.6
    """
    if num_ngrams == 0:
        return 0.0
    expected = -num_possible * math.expm1(num_ngrams * math.log1p(-1 / num_possible))
    return num_different / expected


class DistinctNgrams(PooledTextMetric):
    """Distinct-n: the share of different n-grams, within prompts and overall.

    Longer texts repeat more, so compare equal numbers of samples of similar length, or use
    `ExpectationAdjustedDistinct`.

    Args:
        sizes: Values of n; the results are called `distinct_<n>`.
        words: Rule to split words: "whitespace", or "13a".
        overall: Also measure all texts together (see `PooledTextMetric`).
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a size is not positive, or the rule is not known.

    >>> metric = DistinctNgrams(sizes=[1], overall=False)
    >>> metric.update([["a b", "a c"], ["a a a a"]])
    >>> metric.compute()["distinct_1"].item()  # (3/4 + 1/4) / 2
    0.5
    """

    def __init__(
        self,
        sizes: Sequence[int] = (1, 2, 3, 4),
        words: str = "whitespace",
        overall: bool = True,
        **kwargs: Any,
    ) -> None:
        self.sizes = _checked_sizes(sizes)
        super().__init__([f"distinct_{n}" for n in self.sizes], overall, **kwargs)
        self.words = words
        word_rule(words)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of unequal prompts, with short and empty texts."""
        return cls(), _EXAMPLE_BATCHES

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Measure distinct-n of one set of texts."""
        split = word_rule(self.words)
        word_lists = [split(text) for text in texts]
        return {f"distinct_{n}": distinct_share(word_lists, n) for n in self.sizes}


class ExpectationAdjustedDistinct(PooledTextMetric):
    """EAD: distinct n-grams over their expected number, within prompts and overall.

    `ead` is the mean over the sizes, `ead_<n>` are its parts (`expectation_adjusted_share`).

    compat="rlfh-gen-div" is `AveragedExpectationAdjustedDistinctNgrams` of
    facebookresearch/rlfh-gen-div (2310.06452), which the MARA paper uses: sizes 1 to 5; V = 50257
    for *every* n, a wrong scale above n = 1; full stops and line ends are deleted and leave no
    space; words are split at single spaces only, so a tab is part of a word; and
    1 - ((V - 1) / V)^C is computed directly. A prompt's value and the overall one equal the
    original to the last digit. The mean over prompts is rounded once, where the original's
    `np.mean` may differ in the last digit from eight prompts on.

    Args:
        sizes: Values of n.
        vocabulary_size: V, the number of possible words. One number means V^n possible n-grams; a
            mapping gives the number of possible n-grams for each n.
        words: Rule to split words: "whitespace", or "13a".
        overall: Also measure all texts together (see `PooledTextMetric`).
        compat: None, or "rlfh-gen-div", which fixes sizes, vocabulary and words.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a size has no vocabulary, one is not above 1, or a name is not known.

    >>> metric = ExpectationAdjustedDistinct(sizes=[1], vocabulary_size=2, overall=False)
    >>> metric.update([["yes no", "no no"]])
    >>> round(metric.compute()["ead"].item(), 4)  # 2 / (2 (1 - 1/16))
    1.0667
    """

    def __init__(
        self,
        sizes: Sequence[int] = (1, 2, 3, 4, 5),
        vocabulary_size: int | Mapping[int, int] = 50257,
        words: str = "whitespace",
        overall: bool = True,
        compat: str | None = None,
        **kwargs: Any,
    ) -> None:
        _check_compat(compat, "rlfh-gen-div")
        self.sizes = (1, 2, 3, 4, 5) if compat else _checked_sizes(sizes)
        super().__init__([*(f"ead_{n}" for n in self.sizes), "ead"], overall, **kwargs)
        self.words = words
        word_rule(words)
        self.compat = compat
        self.num_possible = self._possible_ngrams(vocabulary_size)

    def _possible_ngrams(self, vocabulary_size: int | Mapping[int, int]) -> dict[int, float]:
        if self.compat:
            return dict.fromkeys(self.sizes, 50257)
        if isinstance(vocabulary_size, Mapping):
            stated = {int(n): float(count) for n, count in vocabulary_size.items()}
        else:
            stated = {n: float(vocabulary_size) ** n for n in self.sizes}
        for n in self.sizes:
            if not stated.get(n, 0) > 1:
                raise ValueError(
                    f"vocabulary_size={vocabulary_size} leaves {stated.get(n, 'no')} possible "
                    f"{n}-grams: state a number above 1 for every size."
                )
        return stated

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of unequal prompts, with short and empty texts."""
        return cls(vocabulary_size=30), _EXAMPLE_BATCHES

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Measure EAD of one set of texts."""
        split = _space_words_without_stops if self.compat else word_rule(self.words)
        word_lists = [split(text) for text in texts]
        shares = []
        for n in self.sizes:
            found = [gram for words in word_lists for gram in ngrams(words, n)]
            count = _plain_adjusted_share if self.compat else expectation_adjusted_share
            shares.append(count(len(set(found)), len(found), self.num_possible[n]))
        values = {f"ead_{n}": share for n, share in zip(self.sizes, shares, strict=True)}
        return values | {"ead": float(np.mean(shares))}


class NgramDiversity(PooledTextMetric):
    """Distinct-n summed over n = 1 ... `max_size`, within prompts and overall.

    The sum is that of the package `diversity`, which cites 2202.00666 for it. Deviation: n-grams do
    not cross from text to text, and nothing is rounded.

    compat="diversity" is `ngram_diversity_score` of the package `diversity` (0.3.1): the texts are
    joined by spaces, so n-grams cross from one text to the next and the *order of texts counts*;
    words are split at single spaces, so two in a row enclose an empty word; the sum is rounded to 3
    digits. It fails for fewer words than `max_size`, where ours is nan.

    Args:
        max_size: Largest n; values lie in [0, max_size].
        words: Rule to split words: "whitespace", or "13a". Not used with compat="diversity".
        overall: Also measure all texts together (see `PooledTextMetric`). With compat="diversity"
            pass `positions` to `update`, so that the value does not depend on the ranks.
        compat: None, or "diversity".
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the size is not positive, or a name is not known.

    >>> metric = NgramDiversity(max_size=2, overall=False)
    >>> metric.update([["a b a", "a b"]])
    >>> round(metric.compute()["ngram_diversity"].item(), 4)  # 2/5 + 2/3
    1.0667
    """

    def __init__(
        self,
        max_size: int = 4,
        words: str = "whitespace",
        overall: bool = True,
        compat: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(["ngram_diversity"], overall, **kwargs)
        _check_compat(compat, "diversity")
        self.sizes = _checked_sizes(range(1, max_size + 1))
        self.words = words
        word_rule(words)
        self.compat = compat

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric, one whose overall value depends on the order, and batches."""
        return cls(compat="diversity"), _EXAMPLE_BATCHES

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Sum the distinct-n of one set of texts."""
        if self.compat:
            words = " ".join(texts).split(" ")
            if len(words) < self.sizes[-1]:
                return {"ngram_diversity": math.nan}
            return {"ngram_diversity": round(self._sum([words]), 3)}
        split = word_rule(self.words)
        return {"ngram_diversity": self._sum([split(text) for text in texts])}

    def _sum(self, word_lists: Sequence[Sequence[str]]) -> float:
        total = 0.0
        for n in self.sizes:  # not sum(), which rounds differently from Python 3.12 on
            total += distinct_share(word_lists, n)
        return total


def _space_words_without_stops(text: str) -> list[str]:
    return [word for word in text.replace(".", "").replace("\n", "").split(" ") if word]


def _plain_adjusted_share(num_different: int, num_ngrams: int, num_possible: float) -> float:
    """Compute EAD directly, with cancellation errors."""
    expected = num_possible * (1 - ((num_possible - 1) / num_possible) ** num_ngrams)
    return num_different / expected if expected else 0.0


def _checked_sizes(sizes: Sequence[int]) -> tuple[int, ...]:
    if not len(sizes) or min(sizes) < 1:
        raise ValueError(f"n-grams of sizes {list(sizes)}: give at least one size, each positive.")
    return tuple(sizes)


def _check_compat(compat: str | None, *known: str) -> None:
    if compat is not None and compat not in known:
        raise ValueError(f"compat={compat!r} is not known: take null or {' or '.join(known)}.")
