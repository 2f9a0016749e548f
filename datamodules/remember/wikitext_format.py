"""WikiText as the LM Evaluation Harness scores it: detokenised pages in rolling windows."""

import re
from collections.abc import Iterator, Sequence

import numpy as np

from triptych.datamodules.batches.packing import IGNORED_LABEL, Document

# In this order. The second pattern is the harness's own; it never fits, and is left as it is.
_REPLACED = (
    (r"s '", "s'"),
    (r"/' [0-9]/", r"/'[0-9]/"),
    *((f" @{mark}@ ", mark) for mark in ("-", ",")),
    (r" @\.@ ", "."),
    *((re.escape(f" {mark} "), f"{mark} ") for mark in ":;.!?,"),
    (r"\(\s*([^\)]*?)\s*\)", r"(\1)"),
    (r"\[\s*([^\]]*?)\s*\]", r"[\1]"),
    (r"{\s*([^}]*?)\s*}", r"{\1}"),
    (r"\"\s*([^\"]*?)\s*\"", r'"\1"'),
    (r"'\s*([^']*?)\s*'", r"'\1'"),
    ("= = = =", "===="),
    ("= = =", "==="),
    ("= =", "=="),
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)


def detokenised(page: str) -> str:
    """Write a page of WikiText as people write.

    >>> detokenised("The game , a tactical role @-@ playing game , sold 1 @,@ 000 copies . ")
    'The game, a tactical role-playing game, sold 1,000 copies. '
    """
    for pattern, text in _REPLACED:
        page = re.sub(pattern, text, page)
    return page


def num_words(page: str) -> int:
    """Count the words of a page as it was, white space at its ends included."""
    return len(re.split(r"\s+", page))


def rolling_windows(ids: Sequence[int], prefix: int, length: int) -> Iterator[Document]:
    """Cut a page so that each token is predicted once, with as much before it as fits.

    Args:
        ids: The page's tokens.
        prefix: Token before the first one.
        length: Tokens that the model reads at once.

    Yields:
        Documents of at most `length` + 1 tokens. The last one begins earlier than the others end,
        so that its tokens too have a full window; these repeated tokens have no label.

    >>> for document in rolling_windows([11, 12, 13, 14, 15], 1, 3):
    ...     print(document.ids.tolist(), document.labels.tolist())
    [1, 11, 12, 13] [-100, 11, 12, 13]
    [12, 13, 14, 15] [-100, -100, 14, 15]
    """
    whole = np.array([prefix, *ids], np.int32)
    for first in range(1, len(whole), length):
        stop = min(first + length, len(whole))
        start = max(0, stop - length - 1)
        window = whole[start:stop]
        labels = window.copy()
        labels[: first - start] = IGNORED_LABEL
        yield Document(window, labels)
