"""Replies that the diversity metrics are tested on: six of each prompt."""

import gzip
import json
from pathlib import Path

import pytest

SAMPLES = [
    [
        "The ocean is a cradle of storms.",
        "The ocean is a cradle of storms, and we are its sleepless children.",
        "Waves write letters the shore cannot read.",
        "The sea forgets every name it is told.",
        "The sea forgets every name it is told.",
        "Salt, wind, and a horizon that won't stay still.",
    ],
    [
        "I'd pick Lisbon: trams, tiles and custard tarts.",
        "Go to Lisbon. The trams are lovely, and so are the custard tarts.",
        "Kyoto in autumn, without a doubt.",
        "Have you considered Oaxaca?  It has food, colour & markets.",
        "Reykjavík\nif you like rain sideways.",
        "Lisbon",
    ],
    ["1", "2", "1", "I choose 2.", "2", "One"],
    [
        "def area(r): return 3.14159 * r ** 2",
        "def area(radius):\n    return math.pi * radius * radius",
        "lambda r: math.pi * r**2",
        "area = 3.14 * r * r",
        "You can use math.pi and square the radius.",
        "def area(r): return 3.14159 * r ** 2",
    ],
    [
        "Once upon a time there was a fox who collected keys.",
        "Once upon a time, there was a fox who collected keys to doors nobody had built.",
        "There was once a clockmaker's daughter who was afraid of noon.",
        "Nobody in the village had ever seen the lighthouse lit.",
        "A robot woke up in a library and asked for a bedtime story.",
        "The fox had eleven keys, and no house.",
    ],
    [
        "Water boils at 100 °C (212 °F) at sea level.",
        "At sea level, water boils at 100 degrees Celsius.",
        "100 degrees Celsius, i.e. 212 Fahrenheit.",
        "It depends on the pressure; at 1 atm it's 100 °C.",
        "Water boils at 100 °C (212 °F) at sea level.",
        "About 373.15 K - at one atmosphere.",
    ],
]
TEXTS = [text for of_prompt in SAMPLES for text in of_prompt]


def real_prompts(folder: Path, count: int) -> list[str]:
    """The first user turns of real conversations in a folder of real data."""
    path = folder / "prompts" / "wildchat_style.jsonl.gz"
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line, _ in zip(lines, range(count), strict=False)]
    return [row["conversation"][0]["content"] for row in rows]


def package_module(package: str, module: str):
    """A module of an installed package, loaded without what the package itself imports."""
    import importlib.util

    found = importlib.util.find_spec(package)
    if found is None:
        pytest.skip(
            f"the package {package} is not installed: the extra `peers` brings it, and has no "
            "version of `diversity` for Python 3.13"
        )
    path = Path(found.submodule_search_locations[0]) / f"{module}.py"
    spec = importlib.util.spec_from_file_location(f"{package}_{module}", path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded
