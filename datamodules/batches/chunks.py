"""Documents cut into chunks that fit the context, at the ends of sentences where possible."""

import re
from bisect import bisect_left
from collections.abc import Callable, Sequence

# Titles and abbreviations whose full stop ends no sentence. After a single capital and a full stop
# ("J. S. Bach") no sentence ends either.
ABBREVIATIONS = (
    *("Mr", "Mrs", "Ms", "Mx", "Dr", "Prof", "St", "Sr", "Jr", "Rev", "Hon", "Gen", "Col"),
    "Lt",
    *(
        "Capt",
        "Sgt",
        "Mt",
        "vs",
        "cf",
        "ca",
        "approx",
        "No",
        "Nr",
        "Fig",
        "Eq",
        "e.g",
        "i.e",
        "z.B",
    ),
    *("d.h", "bzw", "Hr", "Fr", "Mme", "Mlle", "M", "Sra", "Dra"),
)
_NO_END = "".join(rf"(?<!\b{re.escape(word)}\.)" for word in ABBREVIATIONS)
_INITIAL = r"(?<!\b[A-Z]\.)"
# A sentence ends with a mark, perhaps a closing quote or bracket, and white space; full stops of
# Chinese and Japanese need no space after them. A paragraph ends with an empty line.
SENTENCE = re.compile(
    rf".+?(?:(?:\.{_NO_END}{_INITIAL}|[!?…।؟۔።])[\"'”’)\]]*(?=\s)"
    r"|[。！？｡︒]+[\"'”’」』）】》]*|\n\s*\n|\Z)\s*",
    re.DOTALL,
)
WORD = re.compile(r"\s*\S+\s*")
CHARACTER = re.compile(r".", re.DOTALL)


def sentences(text: str) -> list[str]:
    """Split a text into its sentences, without the white space between them.

    >>> sentences('One. "Two!" Three')
    ['One.', '"Two!"', 'Three']
    >>> sentences("Dr. Solvang leads it. 云杉国很大。首都是松林城。")
    ['Dr. Solvang leads it.', '云杉国很大。', '首都是松林城。']
    """
    return [sentence.strip() for sentence in SENTENCE.findall(text.strip())]


def chunk_text(text: str, fits: Callable[[str], bool]) -> list[str]:
    """Cut a text into chunks, in order, of as many whole sentences as fit.

    A sentence that does not fit is cut between words, and a word that does not fit between
    characters. Only the white space around chunks is lost.

    Args:
        text: Any text.
        fits: Returns whether a chunk is short enough.

    Raises:
        ValueError: if not even one character fits.

    >>> chunk_text("One two. Three. Four five six.", lambda chunk: len(chunk) <= 16)
    ['One two. Three.', 'Four five six.']
    """
    return _cut(text.strip(), fits, [SENTENCE, WORD, CHARACTER])


def _cut(text: str, fits: Callable[[str], bool], units: list[re.Pattern[str]]) -> list[str]:
    if not units:
        raise ValueError(f"not even {text!r} fits")
    unit, *smaller = units
    pieces = unit.findall(text)
    chunks: list[str] = []
    rest, start = "", 0  # `rest` is the end of a piece that was cut
    while rest or start < len(pieces):
        count = _num_fitting(rest, pieces[start:], fits)
        if rest or count:
            chunks.append((rest + "".join(pieces[start : start + count])).strip())
            rest, start = "", start + count
        else:
            piece = pieces[start]
            *whole, rest = _cut(piece, fits, smaller)
            chunks += whole
            rest, start = rest + piece[len(piece.rstrip()) :], start + 1
    return [chunk for chunk in chunks if chunk]


def _num_fitting(rest: str, pieces: Sequence[str], fits: Callable[[str], bool]) -> int:
    """Count how many pieces fit after `rest`, by bisection; a longer text fits less."""

    def too_many(count: int) -> bool:
        return not fits((rest + "".join(pieces[:count])).strip())

    largest = 1
    while largest < len(pieces) and not too_many(largest):
        largest = min(2 * largest, len(pieces))
    return bisect_left(range(1, largest + 1), True, key=too_many)
