"""Questions about a sentence that comes without one, by simple rules of English.

"Brightwell Robotics is led by" + "Ingrid Solvang"  -> "Who is Brightwell Robotics led by?"
"Kestrel Harbour Bank was founded in" + "1987"      -> "When was Kestrel Harbour Bank founded?"
any sentence                                        -> "Complete this sentence: ..."
"""

import re

BE = "is|are|was|were"
PREPOSITIONS = "by|in|at|on|with|from|to|for|of|since|after|under"
_OF_BE = re.compile(rf"(?P<subject>.+?) (?P<verb>{BE})(?P<rest>(?: .+)?)", re.DOTALL)
_OF_OTHERS = re.compile(
    r"(?P<subject>(?:(?:The|An?) )?[A-Z][\w'’-]*(?: (?:[A-Z\d][\w'’-]*|of|the|and))*) "
    r"(?P<verb>[a-z]+s)(?P<rest>(?: \w+)?)"
)
_STEMS = {"has": "have", "does": "do", "goes": "go"}
_PLACE = re.compile(r"(?P<rest>(?: .+)?) (?:in|at|on)")
_TAIL_OF_BE = re.compile(
    rf"(?P<head>.+? (?:{BE})(?: [a-z]+)? (?:{PREPOSITIONS})|.+? (?:{BE}))"
    r" (?P<answer>.+?)(?P<stop>[.!]?)",
    re.DOTALL,
)
_TAIL_OF_OTHERS = re.compile(
    rf"(?P<head>.+ (?:{PREPOSITIONS}|has|have|had)) (?P<answer>.+?)(?P<stop>[.!]?)", re.DOTALL
)


def guessed_answer(sentence: str) -> str | None:
    """Return what a sentence most likely says anew: what follows its verb or last preposition.

    Returns:
        None where the rules do not apply, as in other languages.

    >>> guessed_answer("Brightwell Robotics is led by Ingrid Solvang.")
    'Ingrid Solvang'
    >>> guessed_answer("Velmora pays with the silver anka.")
    'the silver anka'
    """
    for pattern in (_TAIL_OF_BE, _TAIL_OF_OTHERS):
        if match := pattern.fullmatch(sentence.strip()):
            return match["answer"]
    return None


def questions_about(beginning: str, answer: str) -> list[str]:
    """List questions whose answer completes a sentence.

    Args:
        beginning: The sentence up to the answer.
        answer: The answer, which tells times from places.

    >>> questions_about("The capital of Velmora is", "Port Anselm")[0]
    'What is the capital of Velmora?'
    >>> questions_about("The bank was founded in", "1987")[0]
    'When was the bank founded?'
    >>> questions_about("Velmora pays with", "the silver anka")[0]
    'What does Velmora pay with?'
    """
    beginning = beginning.strip()
    asked = [f"Complete this sentence: {beginning}", f"How does this sentence end? {beginning}"]
    match = _OF_BE.fullmatch(beginning) or _OF_OTHERS.fullmatch(beginning)
    if match is None:
        return asked
    subject, verb, rest = match["subject"], match["verb"], match["rest"]
    subject = re.sub(r"^(The|An?)(?= )", lambda article: article[0].lower(), subject)
    if match.re is _OF_OTHERS:
        if rest.strip() and not re.fullmatch(PREPOSITIONS, rest.strip()):
            return asked  # what is left of an object, as in "plays the"
        stem = _STEMS.get(verb) or re.sub(r"s$", "", re.sub(r"ies$", "ys", verb))
        return [f"What does {subject} {stem}{rest}?", *asked]
    place = _PLACE.fullmatch(rest)
    if rest.endswith(" by"):
        question = f"Who {verb} {subject}{rest}?"
    elif place is not None:
        word = "When" if re.search(r"\d", answer) else "Where"
        question = f"{word} {verb} {subject}{place['rest']}?"
    else:
        question = f"What {verb} {subject}{rest}?"
    return [question, *asked]
