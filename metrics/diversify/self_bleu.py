"""Self-BLEU: the BLEU of each text with the others as references."""

import math
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Self

from triptych.metrics.diversify.prompt_metric import PooledTextMetric, exact_mean
from triptych.metrics.words import mteval_words, ngrams, word_rule

Gram = tuple[str, ...]


class SelfBLEU(PooledTextMetric):
    """The mean BLEU of each text with *all* others as references; low for different texts.

    Let c_n be the number of n-grams of a text. An n-gram's count is clipped at its largest count in
    any other text, and p_n is the share of n-grams left, or `smoothing` / c_n if there are none.
    BLEU is BP exp(mean_n ln p_n), and 0 if no word is shared. BP = min(1, exp(1 - r / c_1)), where
    r is the length of another text closest to the text's own (of two, the shorter). A text with
    fewer than n words has c_n = 1. This is `nltk`'s `sentence_bleu` with `method1`, the choice of
    the paper's code.

    Cost: the two largest counts of each n-gram are kept, so the time is proportional to the length
    of all texts, without a comparison of every pair.

    Source: Texygen, 1802.01886, section 3.2.

    compat="diversity" is `homogenization_score(measure="bleu")` of the package `diversity` (0.3.1):
    for each text, the *corpus* BLEU of all the others as predictions with that text as each one's
    single reference (no smoothing, "13a" words), divided once more by the number of others,
    averaged, rounded to 3 digits. If all of these are 0, it returns 1.0, so texts that share
    nothing score like equal texts. Its time is proportional to the number of pairs. Where it fails
    (empty texts) ours is nan.

    Args:
        max_size: Largest n-gram, 4 in BLEU-4; with compat="diversity" always 4.
        smoothing: Replaces a count of 0 matches; 0 for BLEU without smoothing.
        words: Rule to split words: "whitespace", or "13a".
        overall: Also measure all texts together (see `PooledTextMetric`).
        compat: None, or "diversity".
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If a number is out of range, or a name is not known.

    >>> metric = SelfBLEU(max_size=1, overall=False)
    >>> metric.update([["a b c", "a b d", "a c b"]])
    >>> round(metric.compute()["self_bleu"].item(), 4)  # (1 + 2/3 + 1) / 3
    0.8889
    """

    higher_is_better = False

    def __init__(
        self,
        max_size: int = 4,
        smoothing: float = 0.1,
        words: str = "whitespace",
        overall: bool = True,
        compat: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(["self_bleu"], overall, **kwargs)
        if max_size < 1 or smoothing < 0:
            raise ValueError(
                f"max_size={max_size} must be at least 1, smoothing={smoothing} at least 0."
            )
        if compat not in (None, "diversity") or (compat and max_size != 4):
            raise ValueError(
                f"compat={compat!r} with max_size={max_size} is not known: take null, or "
                "'diversity' with max_size 4."
            )
        self.max_size = max_size
        self.smoothing = smoothing
        self.words = words
        word_rule(words)
        self.compat = compat

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches with a repeated, a single and an empty text."""
        return cls(), [
            ([["a b a b c", "b a c a b"], ["the cat sat on it", "the cat sat on it", "on it"]],),
            ([["one"]],),
            ([["", "under the sea"], ["x y z", "under the cat sat on"]],),
        ]

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Measure one set of texts; nan for a single one."""
        if len(texts) < 2:
            return {"self_bleu": math.nan}
        if self.compat:
            return {"self_bleu": _homogenization([mteval_words(text) for text in texts])}
        split = word_rule(self.words)
        scores = self_bleu_scores([split(text) for text in texts], self.max_size, self.smoothing)
        return {"self_bleu": exact_mean(scores)}


def self_bleu_scores(
    word_lists: Sequence[Sequence[str]], max_size: int = 4, smoothing: float = 0.1
) -> list[float]:
    """Compute the BLEU of each text against all others.

    Args:
        word_lists: The words of each text, at least two texts.
        max_size: Largest n-gram.
        smoothing: Replaces a count of 0 matches.

    Returns:
        One number in [0, 1] per text.

    >>> self_bleu_scores([["a", "b"], ["a", "c"]], max_size=1)
    [0.5, 0.5]
    """
    by_size = [
        _clipped_matches([Counter(ngrams(words, n)) for words in word_lists])
        for n in range(1, max_size + 1)
    ]
    sorted_lengths = sorted(len(words) for words in word_lists)
    scores = []
    for number, words in enumerate(word_lists):
        matches = [of_size[number] for of_size in by_size]
        if matches[0] == 0 or (smoothing == 0 and 0 in matches):
            scores.append(0.0)
            continue
        logs = [
            math.log((matched or smoothing) / max(1, len(words) - n))
            for n, matched in enumerate(matches)
        ]
        closest = _closest_other_length(sorted_lengths, len(words))
        penalty = min(1.0, math.exp(1 - closest / len(words)))
        scores.append(penalty * math.exp(math.fsum(logs) / max_size))
    return scores


def _clipped_matches(counts: Sequence[Counter[Gram]]) -> list[int]:
    """Count the n-grams of each text, each clipped at its largest count in another text."""
    largest: dict[Gram, tuple[int, int, int]] = {}  # count, its text, largest count of other texts
    for number, of_text in enumerate(counts):
        for gram, count in of_text.items():
            first, owner, second = largest.get(gram, (0, -1, 0))
            if count > first:
                largest[gram] = (count, number, first)
            elif count > second:
                largest[gram] = (first, owner, count)
    matches = []
    for number, of_text in enumerate(counts):
        num_matched = 0
        for gram, count in of_text.items():
            first, owner, second = largest[gram]
            num_matched += min(count, second if owner == number else first)
        matches.append(num_matched)
    return matches


def _closest_other_length(sorted_lengths: Sequence[int], own: int) -> int:
    """Return the length of another text closest to a text's own; of two, the shorter."""
    place = bisect_left(sorted_lengths, own)  # one entry of this length is the text itself
    others = [*sorted_lengths[max(0, place - 1) : place], *sorted_lengths[place + 1 : place + 2]]
    return min(others, key=lambda length: (abs(length - own), length))


def _homogenization(word_lists: Sequence[Sequence[str]]) -> float:
    """Compute `homogenization_score(measure="bleu")`: see `SelfBLEU`."""
    counts = [[Counter(ngrams(words, n)) for n in range(1, 5)] for words in word_lists]
    lengths = [len(words) for words in word_lists]
    num_others = len(word_lists) - 1
    total = 0.0
    for number, length in enumerate(lengths):
        num_predicted = sum(lengths) - length
        if length == 0 or num_predicted == 0:
            return math.nan
        others = [other for other in range(len(word_lists)) if other != number]
        logs = []
        for n in range(4):
            possible = sum(max(0, lengths[other] - n) for other in others)
            shared = sum((counts[other][n] & counts[number][n]).total() for other in others)
            logs.append(math.log(shared / possible) if shared else -math.inf)
        ratio = num_predicted / (length * num_others)
        penalty = 1.0 if ratio > 1.0 else math.exp(1 - 1 / ratio)
        total += penalty * math.exp(sum(0.25 * log for log in logs)) / num_others
    return round((total or len(word_lists)) / len(word_lists), 3)
