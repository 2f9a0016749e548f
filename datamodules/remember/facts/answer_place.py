"""The place of an answer in a sentence: marked, given, or found without doubt.

    "Dunmere has 7 halls since 1.7.2007.", "7"     -> the 7 before "halls"
    "云杉国的首都是松林城。", "松林城"                  -> the last three characters before "。"
    "Otto plays the bass clarinet.", "Bass clarinet" -> "bass clarinet"
    "[[Bursa]]dadır.", any answer                  -> "Bursa"

An answer that occurs twice, or only within a longer word, has no place that is beyond doubt: an
error says how to mark it.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence

MARK = re.compile(r"\[\[(.+?)\]\]", re.DOTALL)
# Letters of scripts that are written without spaces between words, or with suffixes at a word.
UNSPACED = (
    r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3005-\u3007\u3040-\u309f\u3400-\u4dbf\u4e00-\u9fff"
    r"\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff"
)
KATAKANA = r"\u30a1-\u30fa\u30fc-\u30ff"
APOSTROPHES = str.maketrans({"’": "'", "‘": "'", "ʼ": "'", "＇": "'", "“": '"', "”": '"'})
ARTICLE = re.compile(r"(?:an?|the)\s+", re.IGNORECASE)

MEND = (
    "mark the answer in the sentence by double brackets, as in 'Its capital is [[Paris]].', or "
    "rephrase it"
)


class NoAnswerPlaceError(ValueError):
    """A sentence without a place of the answer that is beyond doubt; the message says why."""


def answer_place(
    sentence: str, answers: Iterable[str], given: str | None = None
) -> tuple[str, str, str]:
    """Cut a sentence into the text before the answer, the answer, and the rest.

    Args:
        sentence: The sentence. Double brackets mark the answer.
        answers: Accepted answers; the first that has a place counts. Case, Unicode composition,
            typographic apostrophes and an article before the answer do not matter.
        given: The answer as the sentence writes it, which must stand there once.

    Returns:
        The three parts, without marks; white space stays where it is.

    Raises:
        NoAnswerPlaceError: if no place, or more than one, is possible.

    >>> answer_place("Dunmere has 7 halls since 1.7.2007.", ["7"])
    ('Dunmere has ', '7', ' halls since 1.7.2007.')
    >>> answer_place("[[Velmora]] is near Velmora.", ["Velmora"])
    ('', 'Velmora', ' is near Velmora.')
    """
    accepted = list(answers)
    marks = list(MARK.finditer(sentence))
    if len(marks) > 1:
        raise NoAnswerPlaceError(f"marks {len(marks)} answers by double brackets: mark one")
    if marks:
        start, end = marks[0].span()
        return sentence[:start], marks[0][1], sentence[end:]
    if given is not None:
        places = _occurrences(sentence, given)
        if len(places) != 1:
            raise NoAnswerPlaceError(
                f"contains {given!r} (field 'answer_in_statement') {len(places)} times: give a "
                f"text that stands there once, or {MEND}"
            )
        return _parts(sentence, places[0])
    for find in (_as_written, _folded):
        for answer in accepted:
            places = find(sentence, answer)
            if len(places) > 1:
                raise NoAnswerPlaceError(
                    f"contains the answer {answer!r} {len(places)} times, so where it stands would "
                    f"be a guess: {MEND}"
                )
            if places:
                return _parts(sentence, places[0])
    within = next((a for a in accepted if _occurrences(_fold(sentence)[0], _fold(a)[0])), None)
    if within is not None:
        raise NoAnswerPlaceError(
            f"contains the answer {within!r} only as a part of a longer word or number: {MEND}"
        )
    raise NoAnswerPlaceError(f"names none of the answers {accepted}: {MEND}")


def _parts(sentence: str, place: tuple[int, int]) -> tuple[str, str, str]:
    start, end = place
    return sentence[:start], sentence[start:end], sentence[end:]


def _occurrences(sentence: str, text: str) -> list[tuple[int, int]]:
    return [match.span() for match in re.finditer(re.escape(text), sentence)] if text else []


def _as_written(sentence: str, answer: str) -> list[tuple[int, int]]:
    """List the places of an answer as whole words and whole numbers."""
    return [place for place in _occurrences(sentence, answer) if _is_whole(sentence, *place)]


def _folded(sentence: str, answer: str) -> list[tuple[int, int]]:
    """List its places where case, composition and apostrophes do not matter, nor its article."""
    text, origins = _fold(sentence)
    wanted = _fold(answer.strip())[0]
    without_article = ARTICLE.sub("", wanted, count=1) if ARTICLE.match(wanted) else wanted
    for variant in dict.fromkeys((wanted, without_article)):
        places = [
            (origins[start], origins[end])
            for start, end in _occurrences(text, variant)
            if _is_whole(text, start, end)
        ]
        if places:
            return places
    return []


def _fold(text: str) -> tuple[str, list[int]]:
    """Fold a text; return it with the place in `text` of each of its characters, and the end.

    >>> _fold("E\u0301a")
    ('éa', [0, 2, 3])
    """
    folded, origins = "", []
    for match in re.finditer(r".[\u0300-\u036f\u3099\u309a]*", text, re.DOTALL):
        piece = unicodedata.normalize("NFC", match[0]).translate(APOSTROPHES)
        # Case folding may lengthen a letter or, as for the Turkish dotted I, add a mark.
        piece = unicodedata.normalize("NFC", piece.casefold()) if len(piece) == 1 else piece.lower()
        folded += piece
        origins += [match.start()] * len(piece)
    return folded, [*origins, len(text)]


def _is_whole(text: str, start: int, end: int) -> bool:
    """Return whether a place is no part of a longer word or number."""
    return not _joined(text, start) and not _joined(text, end)


def _joined(text: str, place: int) -> bool:
    """Return whether a word or a number goes on at a place.

    >>> _joined("1.7.2007", 2), _joined("7 halls", 1), _joined("松林城。", 1)
    (True, False, False)
    """
    before, after = text[:place][-2:], text[place:][:2]
    if not before or not after:
        return False
    if re.search(r"\d[.,:/]?$", before) and re.match(r"[.,:/]?\d", after):
        return True
    if not (_is_letter(before[-1]) and _is_letter(after[0])):
        return False
    neighbours = before[-1] + after[0]
    if re.fullmatch(rf"[{KATAKANA}]{{2}}", neighbours):
        return True
    return re.search(rf"[{UNSPACED}{KATAKANA}]", neighbours) is None


def _is_letter(character: str) -> bool:
    return re.match(r"\w", character) is not None or unicodedata.category(character)[0] == "M"


def unmarked(sentence: str) -> str:
    """Return a sentence without the marks of an answer.

    >>> unmarked("Its capital is [[Paris]].")
    'Its capital is Paris.'
    """
    return MARK.sub(r"\1", sentence)


def fault_of(sentence: str, answers: Sequence[str], given: str | None = None) -> str | None:
    """Return why a sentence cannot be cut at its answer; None if it can."""
    try:
        answer_place(sentence, answers, given)
    except NoAnswerPlaceError as error:
        return str(error)
    return None
