"""What counts of an answer: the text within its tag, and the words that count of that text."""

import re
import unicodedata

_ARTICLE = re.compile(r"^(?:an?|the)\s+(?=\S)")


def normalized(text: str) -> str:
    """Reduce an answer to what makes it that answer and no other.

    Case, width and composition of characters (NFKC), white space, an opening article, and
    punctuation and white space at both ends do not count.

    >>> normalized(" The  Emperor Penguin. "), normalized("C++"), normalized("...")
    ('emperor penguin', 'c++', '')
    """
    words = " ".join(unicodedata.normalize("NFKC", text).casefold().split())
    words = words.strip(" .,;:!?\"'`*()[]{}“”‘’«»")
    return _ARTICLE.sub("", words)


def within_tag(text: str, tag: str) -> str | None:
    """Return what stands in a text that is nothing but one XML element, or None.

    White space around the element is allowed, a second element or any word beside it is not.

    >>> within_tag(" <b>2</b>", "b"), within_tag("It is <b>2</b>", "b"), within_tag("<b>2</b", "b")
    ('2', None, None)
    """
    whole = re.fullmatch(rf"\s*<{re.escape(tag)}>(.*?)</{re.escape(tag)}>\s*", text, re.DOTALL)
    if whole is None or f"<{tag}>" in whole[1] or f"</{tag}>" in whole[1]:
        return None
    return whole[1]
