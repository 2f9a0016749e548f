"""The letter of the option that a reply chooses."""

import re

OPTION_LETTERS = "ABCDEFGHIJ"

_FILLER = (
    r"(?:[\s:=*_\"'$]|\b(?:therefore|thus|hence|clearly|most\s+likely|probably|definitely|indeed"
    r"|option|choice|letter|answer|is|the|be)\b)*"
)
# Before a choice, beside the marks of an answer.
_CHOICE_MARK = re.compile(
    r"\b(?:correct|right|best|final)\s+(?:option|choice|one|answer|letter)\b(?:\s+is|\s*[:=])?"
    r"|\b(?:option|choice)\s+is\b|\b(?:must|should|would|has to)\s+be\b"
    r"|\b(?:choose|select|pick|go with|going with|chose)\b",
    re.IGNORECASE,
)
# After "B": what would make A an article and I a pronoun.
_WORD_AFTER = (
    r"(?=\s+[a-z])(?!\s+(?:because|since|as|is|and|for|with|which|or|due|based|was|from)\b)"
)


def letter_after(text: str, letters: str) -> str | None:
    """Return the letter that a text begins with, in a bracket or alone; a lower-case one counts.

    >>> letter_after(" (b) 12", "ABCDE"), letter_after("A good plan", "ABCDE")
    ('B', None)
    """
    match = re.match(
        rf"{_FILLER}(?:[(\[{{]\s*(?P<in>[A-Za-z])\s*[)\]}}]|(?P<alone>[A-Za-z])(?![\w'’]|-\w))",
        text,
    )
    if match is None:
        return None
    if match["in"]:
        return _one_of(match["in"], letters)
    letter, rest = match["alone"], text[match.end() :]
    if letter.islower() and not re.match(r"\s*(?:[).:,*]|$)", rest):
        return None  # an article, or a variable
    if letter in "AI" and re.match(_WORD_AFTER, rest):
        return None
    return _one_of(letter, letters)


def _capital_after(text: str, letters: str) -> str | None:
    found = letter_after(text, letters)
    if found is None or re.match(rf"{_FILLER}[(\[{{]?\s*{found}", text) is None:
        return None
    return found


def letter_in(text: str, letters: str, mark: re.Pattern[str]) -> str | None:
    """Find the letter that a reply chooses; None if there is none.

    From the surest to the least sure: after the first mark that a letter follows; at the beginning
    ("B) 12"); the last that stands in brackets or alone.

    Args:
        text: The reply, without LaTeX and Markdown.
        letters: The letters that there are, in capitals.
        mark: Matches what stands before an answer.
    """
    text = _without_options(text)
    for pattern in (mark, _CHOICE_MARK):
        after = [text[match.end() :] for match in pattern.finditer(text)]
        given = [found for rest in after if (found := letter_after(rest, letters)) is not None]
        if given:  # "the answer is a" may be no choice
            capitals = [found for rest in after if (found := _capital_after(rest, letters))]
            return (capitals or given)[0]
    for match in mark.finditer(text):
        sentence = re.split(r"[.!?](?=\s|$)|\n\n", text[match.end() :].lstrip())[0]
        if candidates := _candidates(sentence, letters):
            return candidates[0]
    begin = re.match(r"\W*(?:Option\s+|Choice\s+)?([A-Z])\s*[).:,]|\W*([A-Za-z])\W*$", text)
    if begin is not None and (found := _one_of(begin[1] or begin[2], letters)) is not None:
        rest = text[begin.end() :]
        return (letter_after(rest, letters) if text[begin.end() - 1] == ":" else None) or found
    candidates = _candidates(text, letters)
    return candidates[-1] if candidates else None


def _candidates(text: str, letters: str) -> list[str]:
    """Return the letters that stand in brackets or alone and are no article, pronoun or negated."""
    found = []
    for match in re.finditer(r"(?<![\w'’.-])\(?([A-Za-z])\)?(?![\w'’]|-\w)", text):
        letter = match[1]
        bracketed = match[0].endswith(")")
        before = text[: match.start()].rstrip()
        if re.search(r"\b(?:not|n't|than|rather than)$", before):
            continue
        if letter.islower() and not (bracketed and match[0].startswith("(")):
            continue
        if letter in "AI" and not bracketed and re.match(_WORD_AFTER, text[match.end() :]):
            continue
        if (known := _one_of(letter, letters)) is not None:
            found.append(known)
    return found


def _one_of(letter: str, letters: str) -> str | None:
    return letter.upper() if letter.upper() in letters else None


def _without_options(text: str) -> str:
    """Drop the options where a reply repeats them: lines that begin with A, B, C in turn."""
    lines = text.split("\n")
    starts = [re.match(r"\W*([A-J])\s*[).:](?=\s*\S)", line) for line in lines]
    known = [start[1] if start else "" for start in starts]
    dropped: set[int] = set()
    for place, letter in enumerate(known):
        if letter != "A":
            continue
        run = [place]
        while run[-1] + 1 < len(known) and known[run[-1] + 1] == OPTION_LETTERS[len(run)]:
            run.append(run[-1] + 1)
            if len(run) == len(OPTION_LETTERS):
                break
        if len(run) > 1:
            dropped.update(run)
    return "\n".join(line for place, line in enumerate(lines) if place not in dropped)
