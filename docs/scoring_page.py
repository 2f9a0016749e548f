"""Writes `molecule_scoring.md` from the docstrings of components and transforms.

`python -m docs.scoring_page`, from the repository.
"""

import importlib
import inspect
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

from triptych.objectives.rewards import molecules
from triptych.objectives.rewards.molecules.component import MoleculeComponent
from triptych.objectives.rewards.molecules.synthesizability import RetrosynthesisModel
from triptych.objectives.rewards.molecules.transforms import Transform

PAGE = Path(__file__).with_name("molecule_scoring.md")
HEAD = """# Scoring molecules: components and transforms

A `MoleculeObjective` combines components, each mapped to [0, 1] by its transform. Every component
takes `transform` and `name`. Give the class by its path. Use several programs, servers or functions
of your own beside these. This page is written from the docstrings by `python -m docs.scoring_page`.

<!-- not run: a part of an experiment; tests/configs runs molecules.yaml, which has one -->
```yaml
reward:
  class_path: triptych.objectives.rewards.molecules.oracle_reward.OracleReward
  init_args:
    budget: 1000
    objective:
      class_path: triptych.objectives.rewards.molecules.objective.MoleculeObjective
      init_args:
        components:
          - class_path: triptych.objectives.rewards.molecules.properties.DrugLikeness
          - class_path: triptych.objectives.rewards.molecules.properties.MolecularWeight
            init_args:
              transform:
                class_path: triptych.objectives.rewards.molecules.transforms.DoubleSigmoid
                init_args: {low: 250, high: 450, divisor: 500, falling: 20, rising: 20}
```
"""
SECTIONS = {
    "Components": MoleculeComponent,
    "Models of synthesis, for `Retrosynthesis`": RetrosynthesisModel,
    "Transforms": Transform,
}


def page() -> str:
    """Return the page."""
    parts = [HEAD]
    for title, base in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        parts += [_section(found) for found in _classes(base)]
    return "".join(parts)


def _classes(base: type) -> Iterator[type]:
    """Yield the public subclasses of a class in their modules' order."""
    for module in pkgutil.iter_modules(molecules.__path__, f"{molecules.__name__}."):
        for found in vars(importlib.import_module(module.name)).values():
            is_own = inspect.isclass(found) and found.__module__ == module.name
            if is_own and issubclass(found, base) and found is not base:
                yield found


def _section(found: type) -> str:
    text = inspect.getdoc(found) or ""
    about, _, rest = text.partition("\n\nArgs:\n")
    arguments = rest.partition("\n\nRaises:")[0]
    lines = [f"\n### {found.__name__}\n", f"\n`{found.__module__}.{found.__qualname__}`\n"]
    lines.append(f"\n{_without_examples(about)}\n")
    settings = re.findall(r"^    (\w+): ((?:.*)(?:\n {8}.*)*)", arguments, re.M)
    if settings:
        lines.append("\n")
        lines += [f"- `{name}`: {' '.join(words.split())}\n" for name, words in settings]
    return "".join(lines)


def _without_examples(text: str) -> str:
    """Leave out paragraphs that are examples or code."""
    paragraphs = text.split("\n\n")
    return "\n\n".join(p for p in paragraphs if not p.startswith((">>>", " ", "Raises:")))


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
