"""Open questions with many right answers, and the replies that the warm-up teaches.

    prompt_rows()   {"id": "fruit/0", "prompt": "Name a fruit.", "answers": ["apple", ...],
                     "category": "fruit", "split": "train"}
    reply_rows()    the same questions with `replies` and `weights`: an uneven prior over the right
                    answers, and a share of wrong ones

The questions are all categories of `categories.yaml` in all phrasings. Policy training holds out
some phrasings (of training categories) and some categories (in all phrasings). The warm-up teaches
all questions, so that the model knows the right answers everywhere. Only the habit of varying the
answers can transfer to held-out questions. The small set has a third of the categories; a model of
half a million parameters learns it in a minute.

The prior follows Zipf's law: the k-th answer of a category has a weight of 1/k^2, in an order drawn
once for each category (`PRIOR_SEED`), independent of the table's order and the alphabet. The
exponent was computed before any policy was trained: ten samples then contain 3.7 different right
answers, about as many as the paper's RLOO keeps (3.88 of 10); equal odds give 8.1. With 1/k they
contain 6.6, and no method could reach 1.5 times as many.

The warm-up alone also asks for unusual answers (`VARIED_PHRASINGS`), with equal weights on all
right answers. Pretrained language models know such requests, and so have a notion of variety across
categories. Without it a small model learns to vary in each category separately, and nothing
transfers to the held-out categories.
"""

import random
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from triptych.datamodules.embedded.tables import COUNTRIES, ELEMENTS, US_STATES, table_rows

PHRASINGS = (
    "Name {one}.",
    "Tell me {one}.",
    "Think of {one}.",
    "Give me an example of {one}.",
    "Can you name {one}?",
    "What is {one}?",
    "Say the name of {one}.",
    "Please name {one}.",
    "I am looking for {one}.",
    "Pick {one}.",
    "Which is {one} that comes to mind?",
    "Write down {one}.",
)
HELD_OUT_PHRASINGS = (
    "Let me hear {one}.",
    "Could you give me {one}?",
    "Choose {one} at random.",
)
# Asked in the warm-up only: no policy is trained or measured on these.
VARIED_PHRASINGS = (
    "Surprise me with {one}.",
    "Name {one} that few people think of.",
    "Tell me {one} that nobody else would say.",
    "What is an unlikely answer when somebody asks for {one}?",
    "Please name {one}, and not the first that comes to mind.",
)
PRIOR_SEED = 20817
PRIOR_EXPONENT = 2
WRONG_SHARE = 0.1
# Number of wrong answers of each category, drawn from the right answers of others.
NUM_WRONG = 10

_TABLES = {"countries": COUNTRIES, "elements": ELEMENTS, "us_states": US_STATES}


# The small set: every third training category, every second held-out one.
SMALL_STEPS = {False: 3, True: 2}


@cache
def categories() -> dict[str, dict[str, Any]]:
    """Read the categories: name -> `one` (str), `answers` (list of str), `held_out` (bool)."""
    text = (Path(__file__).parent / "categories.yaml").read_text(encoding="utf-8")
    return {
        name: {
            "one": entry["one"],
            "answers": [*entry.get("answers", []), *_from_table(entry.get("table"))],
            "held_out": entry.get("held_out", False),
        }
        for name, entry in yaml.safe_load(text).items()
    }


def small_categories() -> list[str]:
    """Name the categories of the small set: 18 training categories, 5 held-out ones.

    >>> small_categories()[:3], small_categories()[-1]
    (['fruit', 'bird', 'tree'], 'toy')
    """
    names: dict[bool, list[str]] = {False: [], True: []}
    for name, entry in categories().items():
        names[entry["held_out"]].append(name)
    return [name for held_out, step in SMALL_STEPS.items() for name in names[held_out][::step]]


def prompt_rows(small: bool = False) -> list[dict[str, Any]]:
    """List the questions with their right answers.

    Args:
        small: Use the small set of categories only, for models that learn in minutes.

    `split` is `train`, `held_out_phrasings` (of training categories), or `held_out_categories`.

    >>> next(row["prompt"] for row in prompt_rows() if row["category"] == "insect")
    'Name an insect.'
    """
    rows = []
    names = small_categories() if small else list(categories())
    for name in names:
        entry = categories()[name]
        for number, phrasing in enumerate([*PHRASINGS, *HELD_OUT_PHRASINGS]):
            split = "train" if number < len(PHRASINGS) else "held_out_phrasings"
            rows.append(
                {
                    "id": f"{name}/{number}",
                    "prompt": phrasing.format(one=entry["one"]),
                    "answers": entry["answers"],
                    "category": name,
                    "split": "held_out_categories" if entry["held_out"] else split,
                }
            )
    return rows


def reply_rows(small: bool = False) -> list[dict[str, Any]]:
    """List the questions with the replies that the warm-up teaches, and their weights.

    Args:
        small: As in `prompt_rows`.

    The rows are those of `prompt_rows`, and those of `VARIED_PHRASINGS` with the `split` `varied`.
    `weights` add up to 1. Right answers have `1 - WRONG_SHARE`, by Zipf's law, or equally for
    `varied` questions; wrong answers share the rest equally.
    """
    rows = []
    for row in prompt_rows(small) + _varied_rows(small):
        prior = answer_prior(row["category"], 0 if row["split"] == "varied" else PRIOR_EXPONENT)
        rows.append(row | {"replies": list(prior), "weights": list(prior.values())})
    return rows


def _varied_rows(small: bool) -> list[dict[str, Any]]:
    return [
        {
            "id": f"{name}/varied/{number}",
            "prompt": phrasing.format(one=categories()[name]["one"]),
            "answers": categories()[name]["answers"],
            "category": name,
            "split": "varied",
        }
        for name in (small_categories() if small else categories())
        for number, phrasing in enumerate(VARIED_PHRASINGS)
    ]


@cache
def answer_prior(category: str, exponent: float = PRIOR_EXPONENT) -> dict[str, float]:
    """Return the weight of each reply: right ones from the most frequent down, then wrong ones.

    Args:
        category: Its name.
        exponent: The k-th right answer has a weight of 1/k^exponent.

    >>> prior = answer_prior("month")
    >>> round(sum(prior.values()), 9), len(prior)
    (1.0, 22)
    """
    rng = random.Random(f"{PRIOR_SEED}/{category}")
    right = list(categories()[category]["answers"])
    rng.shuffle(right)
    weights = [rank**-exponent for rank in range(1, len(right) + 1)]
    prior = {
        answer: (1 - WRONG_SHARE) * weight / sum(weights)
        for answer, weight in zip(right, weights, strict=True)
    }
    known = {answer.lower() for answer in right}
    others = sorted(
        {
            answer
            for name, entry in categories().items()
            if name != category
            for answer in entry["answers"]
            if answer.lower() not in known
        }
    )
    return prior | dict.fromkeys(rng.sample(others, NUM_WRONG), WRONG_SHARE / NUM_WRONG)


def _from_table(choice: dict[str, Any] | None) -> list[str]:
    """Read answers from an embedded table; of a cell with several, the first."""
    if choice is None:
        return []
    where = choice.get("where", {})
    found = [
        row[choice["column"]].split("|")[0]
        for row in table_rows(_TABLES[choice["name"]])
        if all(row[column].split("|")[0] == value for column, value in where.items())
    ]
    kept = [answer for answer in found if answer not in choice.get("leave_out", [])]
    return kept[: choice.get("limit")]
