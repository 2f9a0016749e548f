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

import inspect
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Self

import torch
from torch import Tensor

from triptych.models.diversify.rollout import Rollout
from triptych.models.host_to_device import send

# Shapes: B completions


class FatalRewardError(ValueError):
    """A failure of the reward as a whole, which ends the run.

    Completions are not scored apart after it, and none of them is at fault.
    """


@dataclass
class Scores:
    """The result of a reward.

    Attributes:
        reward_B: One number per completion; nan where this completion could not be scored.
        components: Parts of the reward for the log and the tables, by name, each (B,).
        errors: Row -> reason why this completion could not be scored.
        over_budget: Rows without a score because a budget is spent, whatever the completion.
        not_applicable: Rows that this reward has nothing to say about. A sum or mean of several
            rewards skips it there.
        exception: The first exception of a completion, for its traceback; None without one, and in
            another process.
    """

    reward_B: Tensor
    components: dict[str, Tensor] = field(default_factory=dict)
    errors: dict[int, str] = field(default_factory=dict)
    over_budget: set[int] = field(default_factory=set)
    not_applicable: set[int] = field(default_factory=set)
    exception: Exception | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"exception": None}  # not every exception can be sent

    @classmethod
    def of_values(cls, values: Iterable[float | None]) -> "Scores":
        """Return scores from one number for each completion, None where the reward does not apply.

        Raises:
            TypeError: if a value is no number.
            ValueError: if a value is a text that is no number.
        """
        listed = list(values)
        numbers = [math.nan if value is None else float(value) for value in listed]
        without = {row for row, value in enumerate(listed) if value is None}
        return cls(torch.tensor(numbers, dtype=torch.float32), not_applicable=without)

    def rows(self, first: int, count: int) -> "Scores":
        """Return `count` rows from `first` on, numbered from 0."""
        own = slice(first, first + count)
        return Scores(
            self.reward_B[own],
            {name: part[own] for name, part in self.components.items()},
            {row - first: text for row, text in self.errors.items() if 0 <= row - first < count},
            {row - first for row in self.over_budget if 0 <= row - first < count},
            {row - first for row in self.not_applicable if 0 <= row - first < count},
            self.exception,
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
    def score(self, rollout: Rollout) -> "Scores | Tensor | Sequence[float | None]":
        """Score every completion; nan and an entry in `errors` where that is not possible.

        A tensor, or a list with None where the reward does not apply, is accepted as well.
        """

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
            scores = self._as_scores(self.score(rollout))
        except FatalRewardError:
            raise
        except Exception as error:  # a user's code on a model's text: anything can happen
            scores = self._score_apart(rollout, error)
        else:
            self._check_length(scores, len(rollout))
        return self._checked(scores, device)

    def _as_scores(self, result: Any) -> Scores:
        if isinstance(result, Scores):
            return result
        if isinstance(result, Tensor):
            return Scores(result)
        if isinstance(result, str) or not isinstance(result, Iterable):
            raise TypeError(
                f"{type(self).__name__}.score returned {type(result).__name__}: return `Scores`, a "
                "tensor, or a list with one number (or None) for each completion"
            )
        return Scores.of_values(result)

    def _score_apart(self, rollout: Rollout, error: Exception) -> Scores:
        """Score each completion, or each group, alone, after scoring all at once failed."""
        parts = list(_parts(rollout, self.scope))
        reward_B = torch.full((len(rollout),), math.nan, dtype=torch.float32)
        scores = Scores(reward_B, exception=error)
        if len(parts) == 1:  # no smaller part to try
            scores.errors = dict.fromkeys(range(len(rollout)), _message(error))
            return scores
        for rows in parts:
            try:
                part = self._as_scores(self.score(rollout.select(rows)))
            except FatalRewardError:
                raise
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
            scores.not_applicable |= {int(rows[row]) for row in part.not_applicable}
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
        not_applicable = {int(row) for row in scores.not_applicable} - errors.keys()
        for row in not_applicable:
            errors[row] = "the reward does not apply to this completion (it returned None)"
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
        errors = dict(sorted(errors.items()))
        return Scores(
            send(reward_B, device),
            components,
            errors,
            over_budget,
            not_applicable,
            scores.exception,
        )


class TextReward(Reward):
    """A reward of one completion at a time.

    A `score_one` that has further parameters called `finished` (whether the reply ended by itself)
    or `num_tokens` (its length in tokens) gets these too, by name.
    """

    scope = "completion"

    @abstractmethod
    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float | None:
        """Score one completion; None where the reward does not apply.

        Args:
            text: The completion.
            prompt: Its prompt.
            record: The data's row of that prompt; empty where there is none.
        """

    def score(self, rollout: Rollout) -> Scores:
        """Score each completion alone; an exception makes only its own completion nan."""
        return score_each(self.score_one, rollout)


def score_each(score_one: Callable[..., float | None], rollout: Rollout) -> Scores:
    """Score each completion by a function of text, prompt and record.

    Args:
        score_one: Returns a number, or None where the reward does not apply. Gets `finished` and
            `num_tokens` by name if it has such parameters.
        rollout: The completions.

    Returns:
        Scores: nan with a reason where the function raised an exception.
    """
    values: list[float | None] = []
    scores = Scores(torch.empty(0, dtype=torch.float32))
    asked = asked_columns(score_one, rollout)
    prompts = rollout.prompts or [""] * len(rollout)
    for row, (text, prompt) in enumerate(zip(rollout.texts, prompts, strict=True)):
        record = dict(rollout.records[row]) if rollout.records else {}
        try:
            value = score_one(text, prompt, record, **{k: v[row] for k, v in asked.items()})
            values.append(None if value is None else float(value))
        except Exception as error:  # a user's code on a model's text: anything can happen
            values.append(math.nan)
            scores.errors[row] = _message(error)
            scores.exception = scores.exception or error
    made = Scores.of_values(values)
    return replace(scores, reward_B=made.reward_B, not_applicable=made.not_applicable)


def asked_columns(function: Callable[..., Any], rollout: Rollout) -> dict[str, list[Any]]:
    """Return what a function's parameters ask for of `finished` (bool) and `num_tokens` (int)."""
    try:
        names = inspect.signature(function).parameters
    except ValueError:  # some functions written in C have no signature
        return {}
    known = {"finished": rollout.finished_B, "num_tokens": rollout.num_tokens}
    return {name: values_B.tolist() for name, values_B in known.items() if name in names}


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
