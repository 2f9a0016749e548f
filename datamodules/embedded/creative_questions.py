"""Open questions with many right answers, and what a model is taught to answer before it explores.

    prompt_rows()   {"id": "fruit/0", "prompt": "Name a fruit.", "answers": ["apple", ...],
                     "category": "fruit", "split": "train"}
    reply_rows()    the same questions with `replies` and `weights`: an uneven prior over the right
                    answers, and a share of wrong ones

Questions are every category of `categories.yaml` in every phrasing. Two things are held out of
training a policy: some phrasings (of training's categories) and some categories (in all phrasings).
The warm-up teaches all of them, so that the model *knows* the right answers everywhere; what can
reach the held-out ones is the habit of spreading over what it knows. The small set has a third of
the categories, so that a model of half a million parameters knows them after a minute.

The prior is Zipf's: the k-th answer of a category has a weight of 1/k^2, in an order drawn once for
each category (`PRIOR_SEED`), so that neither the table's order nor the alphabet tells it. The
exponent was set by arithmetic before any policy was trained on it: ten samples then hold 3.7
different right answers, about as many as the paper's RLOO keeps (3.88 of 10), where equal odds hold
8.1. With 1/k they hold 6.6, and no method could reach 1.5 times as many.

The warm-up, and nothing else, also asks for what few people would say (`VARIED_PHRASINGS`), and
there all right answers are alike. Pretrained language models know such requests, so that they have
a notion of variety that belongs to no category. Without it a small model learns to vary in each
category apart, and no habit reaches the categories that are held out.
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
# Asked in the warm-up alone: no policy is trained or measured on these.
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
# So many wrong answers for each category, drawn from the others' right ones.
NUM_WRONG = 10

_TABLES = {"countries": COUNTRIES, "elements": ELEMENTS, "us_states": US_STATES}


# The small set: so many categories apart, of training's and of the held-out ones.
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
    """Name the categories of the small set: 18 of training's, 5 of the held-out ones.

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
        small: Of the small set of categories alone, for models that learn in minutes.

    `split` is `train`, `held_out_phrasings` (of training's categories), or `held_out_categories`.

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
    """List the questions with the replies that the warm-up teaches, and how often each.

    Args:
        small: As in `prompt_rows`.

    Beside the rows of `prompt_rows` those of `VARIED_PHRASINGS`, whose `split` is `varied`.
    `weights` add up to 1: `1 - WRONG_SHARE` for the right answers by Zipf's law, or all alike where
    variety is asked for; the rest for wrong ones, all alike.
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
    """Return how often each reply is taught: the right ones, the most frequent first, then wrong.

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
    """Read answers from an embedded table; a cell's first entry counts."""
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
