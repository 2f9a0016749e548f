"""The seam of rewards: one number for every completion, even where scoring fails.

    scores = reward(rollout)          # does not raise for a completion that breaks the reward
    scores.reward_B                   # nan where a completion could not be scored
    scores.errors                     # {row: reason}

Your own reward is a file with a subclass of `TextReward` (or of `Reward`, if it needs more than
text), named in a YAML by its `class_path`:

    class ShortReply(TextReward):
        range = (0.0, 1.0)

        def score_one(self, text, prompt, record):
            return 1.0 if len(text) < 40 else 0.0
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from triptych.models.diversify.rollout import Rollout
from triptych.models.host_to_device import send

# Shapes: B completions


@dataclass
class Scores:
    """The result of a reward.

    Attributes:
        reward_B: One number per completion; nan where this completion could not be scored.
        components: Parts of the reward for the log and the tables, by name, each (B,).
        errors: Row -> reason why this completion could not be scored.
        over_budget: Rows without a score because a budget is spent, whatever the completion.
    """

    reward_B: Tensor
    components: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    over_budget: set[int] = field(default_factory=set)

    def rows(self, first: int, count: int) -> "Scores":
        """Return `count` rows from `first` on, numbered from 0."""
        own = slice(first, first + count)
        return Scores(
            self.reward_B[own],
            {name: part[own] for name, part in self.components.items()},
            {row - first: text for row, text in self.errors.items() if 0 <= row - first < count},
            {row - first for row in self.over_budget if 0 <= row - first < count},
        )

    def to(self, device: torch.device | str) -> "Scores":
        """Return the same scores on another device."""
        components = {name: part.to(device) for name, part in self.components.items()}
        return replace(self, reward_B=self.reward_B.to(device), components=components)


class Reward(ABC):
    """Scores completions. A subclass is one file, picklable, and named by `class_path` in a YAML.

    Call a reward to score a rollout. A subclass writes `score`, which gets the whole rollout:
    texts, prompts, records, token ids, and the log-probabilities under policy and reference. A
    reward of single completions is a `TextReward` and only needs `score_one`.

    Attributes:
        range: Least and largest value; infinite where there is no bound. A value outside by more
            than rounding counts as an error of that completion.
        scope: Whether a completion's reward depends on the `completion` alone, or on the others of
            its `group` too. Where `score` raises, each of these is scored again alone, so that only
            the failing ones are lost.
    """

    range: tuple[float, float] = (-math.inf, math.inf)
    scope: Literal["completion", "group"] = "group"

    @property
    def name(self) -> str:
        """The name of the class, in words joined by underscores."""
        words = "".join(f"_{c.lower()}" if c.isupper() else c for c in type(self).__name__)
        return words.lstrip("_")

    @classmethod
    def example(cls) -> Self:
        """Return a reward with plain settings, for the contract tests of all rewards."""
        return cls()

    def prepare(self, device: torch.device) -> None:  # noqa: B027 (most need nothing)
        """Load resources for scoring, once; an exception from here ends the run.

        Args:
            device: Where the completions are.
        """

    @abstractmethod
    def score(self, rollout: Rollout) -> Scores:
        """Score every completion; nan and an entry in `errors` where that is not possible."""

    def begin(self, rollout: Rollout) -> None:  # noqa: B027 (most score in `__call__` alone)
        """Start scoring in the background; `__call__` with the same rollout collects the result.

        Args:
            rollout: The completions to score.
        """

    def __call__(self, rollout: Rollout) -> Scores:
        """Score every completion; one that cannot be scored is nan, with a reason in `errors`.

        Returns:
            Scores: `reward_B` float32 on the device of the rollout's tokens; every entry finite and
            in `range`, or nan.

        Raises:
            ValueError: if the reward returns another number of values than completions.
        """
        device = rollout.token_ids_BT.device
        with _float32_by_default():
            return self._scored(rollout, device)

    def _scored(self, rollout: Rollout, device: torch.device) -> Scores:
        self.prepare(device)
        try:
            scores = self.score(rollout)
        except Exception as error:  # a user's code on a model's text: anything can happen
            scores = self._score_apart(rollout, error)
        else:
            self._check_length(scores, len(rollout))
        return self._checked(scores, device)

    def _score_apart(self, rollout: Rollout, error: Exception) -> Scores:
        """Score each completion, or each group, alone, after scoring all at once failed."""
        parts = list(_parts(rollout, self.scope))
        reward_B = torch.full((len(rollout),), math.nan, dtype=torch.float32)
        scores = Scores(reward_B)
        if len(parts) == 1:  # no smaller part to try
            scores.errors = dict.fromkeys(range(len(rollout)), _message(error))
            return scores
        for rows in parts:
            try:
                part = self.score(rollout.select(rows))
            except Exception as own_error:
                scores.errors |= dict.fromkeys(rows.tolist(), _message(own_error))
                continue
            self._check_length(part, len(rows))
            reward_B[rows] = part.reward_B.detach().float().cpu()
            for name, values in part.components.items():
                column = scores.components.setdefault(name, torch.full_like(reward_B, math.nan))
                column[rows] = values.detach().float().cpu()
            scores.errors |= {int(rows[row]): text for row, text in part.errors.items()}
            scores.over_budget |= {int(rows[row]) for row in part.over_budget}
        return scores

    def _check_length(self, scores: Scores, expected: int) -> None:
        columns = {"rewards": scores.reward_B} | scores.components
        for name, values in columns.items():
            if tuple(values.shape) != (expected,):
                raise ValueError(
                    f"{type(self).__name__} gave {name} of shape {tuple(values.shape)}, expected "
                    f"({expected},): one number for each completion, also for empty ones"
                )

    def _checked(self, scores: Scores, device: torch.device) -> Scores:
        reward_B = scores.reward_B.detach().to("cpu", torch.float32).clone()
        errors = {int(row): text for row, text in scores.errors.items()}
        over_budget = {int(row) for row in scores.over_budget}
        for row in over_budget:
            errors.setdefault(row, "the budget is spent")
        low, high = self.range
        slack = 1e-5 * max([1.0, *(abs(end) for end in (low, high) if math.isfinite(end))])
        for row, value in enumerate(reward_B.tolist()):
            if not math.isfinite(value):
                errors.setdefault(row, f"the reward is {value}")
            elif not low - slack <= value <= high + slack:
                errors.setdefault(
                    row,
                    f"the reward is {value:g}, outside the range [{low:g}, {high:g}] that "
                    f"{type(self).__name__} names",
                )
        reward_B = reward_B.clamp(low, high)
        if errors:
            reward_B[sorted(errors)] = math.nan
        components = {k: send(v.detach().float(), device) for k, v in scores.components.items()}
        return Scores(send(reward_B, device), components, dict(sorted(errors.items())), over_budget)


class TextReward(Reward):
    """A reward of one completion at a time."""

    scope = "completion"

    @abstractmethod
    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        """Score one completion.

        Args:
            text: The completion.
            prompt: Its prompt.
            record: The data's row of that prompt; empty where there is none.
        """

    def score(self, rollout: Rollout) -> Scores:
        """Score each completion alone; an exception makes only its own completion nan."""
        rewards: list[float] = []
        errors: dict[int, str] = {}
        prompts = rollout.prompts or [""] * len(rollout)
        for row, (text, prompt) in enumerate(zip(rollout.texts, prompts, strict=True)):
            record = dict(rollout.records[row]) if rollout.records else {}
            try:
                rewards.append(float(self.score_one(text, prompt, record)))
            except Exception as error:  # a user's code on a model's text: anything can happen
                rewards.append(math.nan)
                errors[row] = _message(error)
        return Scores(torch.tensor(rewards, dtype=torch.float32), errors=errors)


@contextmanager
def _float32_by_default() -> Iterator[None]:
    """Let a user's `torch.tensor([0.8999])` be float32 in every precision of the trainer.

    Lightning's `bf16-true` makes bfloat16 the default within a step: 0.8999 would become 0.8984.
    """
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _message(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _parts(rollout: Rollout, scope: str) -> Iterator[Tensor]:
    """Yield the rows of each completion, or of each group, int64."""
    if scope == "completion":
        yield from torch.arange(len(rollout)).split(1)
        return
    group_B = rollout.group_B.cpu()
    for group in group_B.unique().tolist():
        yield (group_B == group).nonzero().flatten()
