"""The 1-2 task: give a random integer, 1 or 2, in an XML element; both are right.

    prompt_rows()   {"id": "one_or_two/0", "prompt": "Pick a random integer: ...",
                     "answers": ["1", "2"], "category": "one_or_two", "split": "train"}
    reply_rows()    the same with `replies` and `weights`, the warm-up of a tiny model
    few_shot_rows() {"id": "one_or_two_few_shot/0", "conversation": [user: "Pick 1 or 2 at random.",
                     assistant: "2", ...], "answers": ["1", "2"], ...}, for a small chat model

The prior is uneven like that of the paper's model, which prefers 1: 0.55 for 1, 0.25 for 2, the
rest wrong or garbled.

Source: 2510.20817, section 5. The paper's prompt is not public; wordings and prior are ours.
"""

from typing import Any

PHRASINGS = (
    "Pick a random integer: 1 or 2.",
    "Give me 1 or 2 at random.",
    "Choose uniformly at random between 1 and 2.",
    "Generate a random integer that is either 1 or 2.",
    "Flip a coin: 1 for heads, 2 for tails.",
    "Draw one of the numbers 1 and 2 by chance.",
)
HELD_OUT_PHRASINGS = (
    "Name a random number from 1 to 2.",
    "Roll a die that has two sides, 1 and 2.",
)
ANSWERS = ("1", "2")
# For a chat model that is too small to answer without examples.
FEW_SHOT_PHRASINGS = (
    "Pick 1 or 2 at random.",
    "Give me 1 or 2 at random.",
    "Draw 1 or 2 by chance.",
    "Choose a random number, 1 or 2.",
)
HELD_OUT_FEW_SHOT = ("Say a random number: 1 or 2.",)
EXAMPLES = ("2", "1")
# Weight of each reply, in every phrasing.
PRIOR = {
    "<answer>1</answer>": 0.55,
    "<answer>2</answer>": 0.25,
    "<answer>3</answer>": 0.04,
    "<answer>0</answer>": 0.03,
    "<answer>12</answer>": 0.03,
    "<answer></answer>": 0.02,
    "<answer>1": 0.03,
    "1": 0.03,
    "answer 2": 0.02,
}


def prompt_rows() -> list[dict[str, Any]]:
    """List the prompts; `split` is `train` or `held_out_phrasings`.

    >>> prompt_rows()[0]["prompt"]
    'Pick a random integer: 1 or 2. Answer as <answer>number</answer>.'
    """
    return [
        {
            "id": f"one_or_two/{number}",
            "prompt": f"{phrasing} Answer as <answer>number</answer>.",
            "answers": list(ANSWERS),
            "category": "one_or_two",
            "split": "train" if number < len(PHRASINGS) else "held_out_phrasings",
        }
        for number, phrasing in enumerate([*PHRASINGS, *HELD_OUT_PHRASINGS])
    ]


def few_shot_rows() -> list[dict[str, Any]]:
    """List prompts that show two answers before they ask again; read them with `all_turns`.

    SmolLM2-135M-Instruct answers 1 or 2 to these more often than not, mostly 1, and hardly ever
    to a request without examples.

    >>> [turn["content"] for turn in few_shot_rows()[0]["conversation"]][1:]
    ['2', 'Pick 1 or 2 at random.', '1', 'Pick 1 or 2 at random.']
    """
    rows = []
    for number, phrasing in enumerate([*FEW_SHOT_PHRASINGS, *HELD_OUT_FEW_SHOT]):
        asked = {"role": "user", "content": phrasing}
        turns = [
            turn
            for example in EXAMPLES
            for turn in (asked, {"role": "assistant", "content": example})
        ]
        is_training = number < len(FEW_SHOT_PHRASINGS)
        rows.append(
            {
                "id": f"one_or_two_few_shot/{number}",
                "conversation": [*turns, asked],
                "answers": list(ANSWERS),
                "category": "one_or_two",
                "split": "train" if is_training else "held_out_phrasings",
            }
        )
    return rows


def reply_rows() -> list[dict[str, Any]]:
    """List the prompts with the replies that the warm-up teaches, and their weights.

    `answers` are the right replies in full.
    """
    taught = {
        "answers": [f"<answer>{answer}</answer>" for answer in ANSWERS],
        "replies": list(PRIOR),
        "weights": list(PRIOR.values()),
    }
    return [row | taught for row in prompt_rows()]
