"""Words and n-grams of texts, by named rules."""

from collections.abc import Callable, Sequence

Tokenize = Callable[[str], list[str]]


def whitespace_words(text: str) -> list[str]:
    r"""Split at white space of any kind and length.

    >>> whitespace_words(" To be,\n or\tnot ")
    ['To', 'be,', 'or', 'not']
    """
    return text.split()


def mteval_words(text: str) -> list[str]:
    """Split as mteval-v13a does, the tokenizer of sacreBLEU and of `evaluate`'s BLEU ("13a").

    >>> mteval_words("It's 3.5, no?")
    ["It's", '3.5', ',', 'no', '?']
    """
    from torchmetrics.functional.text.sacre_bleu import _SacreBLEUTokenizer

    return list(_SacreBLEUTokenizer.tokenize(text, "13a"))


WORD_RULES: dict[str, Tokenize] = {"whitespace": whitespace_words, "13a": mteval_words}


def word_rule(name: str) -> Tokenize:
    """Return the rule of a name.

    Raises:
        ValueError: If there is no such rule.
    """
    if name not in WORD_RULES:
        raise ValueError(f"words={name!r} is not a rule: take one of {', '.join(WORD_RULES)}.")
    return WORD_RULES[name]


def ngrams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    """Return all runs of n neighbouring words, in order.

    >>> ngrams(["a", "b", "a"], 2)
    [('a', 'b'), ('b', 'a')]
    """
    return [tuple(words[start : start + n]) for start in range(len(words) - n + 1)]
