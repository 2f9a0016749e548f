"""Notes on who is where, for the study of real language models: facts and wordings held out.

A fact is a name with a place. A quarter of the facts is never in a note of the training rows,
though every name and every place is; neither are a quarter of the wordings. Held-out rows consist
of these alone, so an adapter that learned pairs by heart answers them at chance.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

NAMES = (
    *("Anna", "Ben", "Carl", "Dora", "Emma", "Frank", "Grace", "Henry", "Ivan", "Jack", "Kate"),
    *("Laura", "Mark", "Nina", "Oscar", "Paul", "Rosa", "Sam", "Tina", "Victor", "Wendy", "Zoe"),
    *("Alice", "Brian", "Chris", "David", "Eric", "Fiona", "George", "Helen", "James", "Maria"),
)
PLACES = ("office", "library", "hall", "garden", "school", "church", "bank", "park")
WORDINGS = (
    "{name} is in the {place}.",
    "{name} is now in the {place}.",
    "You can find {name} in the {place}.",
    "{name} went to the {place} and is still there.",
    "{name} is waiting in the {place}.",
    "The {place} is where {name} is.",
    "{name} can be found in the {place}.",
    "Right now {name} is in the {place}.",
    "{name} has gone to the {place}.",
    "{name} walked into the {place}.",
    "Somebody saw {name} in the {place}.",
    "{name} spends the day in the {place}.",
)
HELD_OUT_WORDINGS = (
    "{name} is staying in the {place}.",
    "If you look for {name}, go to the {place}.",
    "At the moment {name} is in the {place}.",
    "It is in the {place} that {name} works.",
)
Kind = Literal["train", "held_out", "new_facts", "new_wordings"]
KINDS: tuple[Kind, ...] = ("held_out", "new_facts", "new_wordings")


def is_held_out(name: int, place: int) -> bool:
    """Tell whether a fact is in no training row; two places of each name, eight names of each."""
    return (name + place) % 4 == 0


def notes_rows(kind: Kind, num_agents: int, count: int, seed: int = 0) -> list[dict[str, object]]:
    """Draw rows of a kind, without repetition.

    Args:
        kind: `train`; `held_out`: new facts in new wordings; `new_facts` in wordings of the
            training rows; `new_wordings` of facts of the training rows.
        num_agents: Number of agents, each with a note; agent k is asked about the next one's.
        count: Number of rows.
        seed: Seed of the draw.
    """
    rng = random.Random(f"{seed} {kind} {num_agents}")
    facts = [
        (name, place)
        for name in range(len(NAMES))
        for place in range(len(PLACES))
        if is_held_out(name, place) == (kind in ("held_out", "new_facts"))
    ]
    wordings = HELD_OUT_WORDINGS if kind in ("held_out", "new_wordings") else WORDINGS
    return [
        row for row, _ in zip(_drawn(rng, facts, wordings, num_agents), range(count), strict=False)
    ]


def write_notes(folder: Path, kind: Kind, num_agents: int, count: int) -> Path:
    """Write rows to a file of the folder, once; return its path."""
    path = folder / f"notes-{num_agents}-{kind}-{count}.jsonl"
    if not path.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        lines = [json.dumps(row) + "\n" for row in notes_rows(kind, num_agents, count)]
        path.write_text("".join(lines), encoding="utf-8")
    return path


def _drawn(
    rng: random.Random,
    facts: list[tuple[int, int]],
    wordings: tuple[str, ...],
    num_agents: int,
) -> Iterator[dict[str, object]]:
    seen: set[tuple[str, ...]] = set()
    while True:
        drawn = [rng.choice(facts) for _ in range(num_agents)]
        if len({name for name, _ in drawn}) < num_agents:
            continue
        told = [(NAMES[name], PLACES[place]) for name, place in drawn]
        notes = [rng.choice(wordings).format(name=name, place=place) for name, place in told]
        if tuple(notes) in seen:
            continue
        seen.add(tuple(notes))
        asked = [told[(agent + 1) % num_agents] for agent in range(num_agents)]
        yield {
            "notes": notes,
            "questions": [f"Where is {name}?" for name, _ in asked],
            "answers": [place for _, place in asked],
            "reply_starts": [f"{name} is in the" for name, _ in asked],
        }
