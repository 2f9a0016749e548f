"""Tokens of a text in parts: the text is tokenised as a whole and cut by character offsets.

    ("The capital of France is", " Paris", ".")  ->  ids of the three parts

Tokenised apart, a part may begin with a token that no text has there: SentencePiece tokenizers put
their mark for a word's beginning before every text, so before a full stop too.
"""

from collections.abc import Sequence
from itertools import accumulate

from tokenizers import Encoding
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.tokenizer import encode_texts

# Texts to put before a part that must not begin like a text, the first that gives a token of its
# own counts.
BEFORE = ("\n", ".", "|")


def encode_parts(
    tokenizer: PreTrainedTokenizerFast, texts: Sequence[Sequence[str]]
) -> list[list[list[int]]]:
    """Tokenise texts that are given in parts, without special tokens.

    Where a token of the whole text crosses from one part into the next, as between Chinese words,
    the parts around it are tokenised apart, so that each begins at a token.

    Args:
        tokenizer: The tokenizer.
        texts: The parts of each text, in order; empty parts have no tokens.

    Returns:
        Token ids of each part of each text.

    >>> from tokenizers import Tokenizer, models, pre_tokenizers
    >>> backend = Tokenizer(models.WordLevel({"a": 0, "b": 1}))
    >>> backend.pre_tokenizer = pre_tokenizers.Whitespace()
    >>> encode_parts(PreTrainedTokenizerFast(tokenizer_object=backend), [("a b", " a", "")])
    [[[0, 1], [0], []]]
    """
    wholes = tokenizer.backend_tokenizer.encode_batch(
        ["".join(parts) for parts in texts], add_special_tokens=False
    )
    return [
        _cut(whole, parts) or _apart(tokenizer, parts)
        for whole, parts in zip(wholes, texts, strict=True)
    ]


def _cut(whole: Encoding, parts: Sequence[str]) -> list[list[int]] | None:
    """Cut the tokens of a whole text; None if a token crosses a bound."""
    bounds = list(accumulate(map(len, parts)))
    cut: list[list[int]] = [[] for _ in parts]
    place = 0
    for token, (start, end) in zip(whole.ids, whole.offsets, strict=True):
        # An empty token, such as a mark before the text, belongs to what follows.
        while place < len(parts) - 1 and start >= bounds[place]:
            place += 1
        if end > bounds[place]:
            return None
        cut[place].append(token)
    return cut


def _apart(tokenizer: PreTrainedTokenizerFast, parts: Sequence[str]) -> list[list[int]]:
    """Tokenise parts apart, those after the first without a mark of a text's beginning."""
    cut: list[list[int]] = []
    for part in parts:
        begun = any(cut)
        cut.append(encode_within(tokenizer, part) if begun else encode_texts(tokenizer, [part])[0])
    return cut


def encode_within(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Tokenise a text that stands inside another one, not at its beginning."""
    if not text:
        return []
    for before in BEFORE:
        whole = tokenizer.backend_tokenizer.encode(before + text, add_special_tokens=False)
        if (parts := _cut(whole, (before, text))) is not None:
            return parts[1]
    return encode_texts(tokenizer, [text])[0]
