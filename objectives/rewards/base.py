"""The seam of rewards: one number for every completion, whatever may go wrong on the way."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from models.rollout import Rollout

# Shapes: B completions


@dataclass
class Scores:
    """What a reward found.

    Attributes:
        reward_B: One number per completion; nan where this completion could not be scored.
        components: Parts of it for the log and the tables, by name, each (B,).
        errors: What went wrong with which completion, by row.
    """

    reward_B: Tensor
    components: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)


class Reward(ABC):
    """Scores completions. A subclass is one file, picklable, and named by `class_path` in a YAML.

    `score` sees the whole rollout: texts, prompts, records, token ids, and the log-probabilities
    under policy and reference. A reward of single completions needs `score_one` alone.

    Attributes:
        range: Least and largest value it can give; infinite where there is no bound.
        name: How its column is called in logs and tables.
    """

    range: tuple[float, float] = (-math.inf, math.inf)

    @property
    def name(self) -> str:
        """Its class's name, in words joined by underscores."""
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.lstrip("_")

    @abstractmethod
    def score(self, rollout: Rollout) -> Scores:
        """Score every completion."""


class TextReward(Reward):
    """A reward of one completion at a time."""

    @abstractmethod
    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Score one completion.

        Args:
            text: What was sampled.
            prompt: What it answers.
            record: The data's row of that prompt; empty where there is none.
        """

    def score(self, rollout: Rollout) -> Scores:
        """Score each completion by itself; one that raises costs itself alone (nan)."""
        rewards: list[float] = []
        errors: dict[int, str] = {}
        for row, (text, prompt) in enumerate(zip(rollout.texts, rollout.prompts, strict=True)):
            record = dict(rollout.records[row]) if rollout.records else {}
            try:
                rewards.append(float(self.score_one(text, prompt, record)))
            except Exception as error:  # a user's code on a model's text: anything can happen
                rewards.append(math.nan)
                errors[row] = f"{type(error).__name__}: {error}"
        return Scores(torch.tensor(rewards, dtype=torch.float32), errors=errors)
