"""The parts of an answer that are compared: the text in its tag, normalised."""

import re
import unicodedata

_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)")


def normalized(text: str) -> str:
    """Normalise an answer for comparison.

    Case, width and composition of characters (NFKC), white space, an opening article, and
    punctuation and white space at both ends are removed.

    >>> normalized(" The  Emperor Penguin. "), normalized("C++"), normalized("...")
    ('emperor penguin', 'c++', '')
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    words = words.strip(" .,;:!?\"'`*()[]{}“”‘’«»")
    return _ARTICLE.sub("", words)


def within_tag(text: str, tag: str) -> str | None:
    """Return the content of a text that is a single XML element, else None.

    White space around the element is allowed, any other text or element is not.

    >>> within_tag(" <b>2</b>", "b"), within_tag("It is <b>2</b>", "b"), within_tag("<b>2</b", "b")
    ('2', None, None)
    """
    whole = re.fullmatch(rf"\s*<{re.escape(tag)}>(.*?)</{re.escape(tag)}>\s*", text, re.DOTALL)
    if whole is None or f"<{tag}>" in whole[1] or f"</{tag}>" in whole[1]:
        return None
    return whole[1]
