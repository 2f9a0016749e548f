"""Wordings of any question by a sentence around it, for facts that bring no wordings of their own.

"Who leads Brightwell?"  taught:    "Tell me: Who leads Brightwell?", ...
held out:  "Do you know this? Who leads Brightwell?", ...
"""

import re
from collections.abc import Sequence

TAUGHT = ("Please answer: {}", "Tell me: {}", "{} Answer briefly.")
HELD_OUT = ("I would like to know: {}", "Do you know this? {}", "{} Please tell me.")
# Around the beginning of a sentence, which ends what is said.
TAUGHT_BEGINNING = ("Go on: {}", "Please go on: {}")
HELD_OUT_BEGINNING = ("What comes next? {}", "One thing, please. {}")
# Around questions of other scripts, where English sentences would be out of place.
TAUGHT_BARE = ("Q: {}", "- {}")
HELD_OUT_BARE = ("» {}", "({})")
#: A fact with fewer wordings to teach gets those of `TAUGHT`.
ENOUGH = 4


def framed(
    question: str, training: Sequence[str], held_out: Sequence[str]
) -> tuple[list[str], list[str]]:
    """Add wordings to the questions of a fact that has few.

    Args:
        question: The fact's question.
        training: Its questions to teach.
        held_out: Its questions that are never taught.

    Returns:
        Both lists, the second never empty.
    """
    latin = re.search(r"[A-Za-z]", question) is not None
    taught, asked = (TAUGHT, HELD_OUT) if latin else (TAUGHT_BARE, HELD_OUT_BARE)
    if latin and not question.rstrip().endswith("?"):
        taught, asked = TAUGHT_BEGINNING, HELD_OUT_BEGINNING
    more = [frame.format(question) for frame in taught] if len(training) < ENOUGH else []
    never = list(held_out) or [frame.format(question) for frame in asked]
    return list(dict.fromkeys([*training, *more])), never
