"""The base of metrics of samples: measured within a prompt's samples, averaged over prompts.

Samples come as one list per prompt, so the samples of a prompt are always measured together. The
values of all prompts are kept and summed exactly (`math.fsum`). The mean therefore does not depend
on the split of prompts into batches and ranks, not even in its last digit.

Shapes: P prompts, K values of a prompt, N texts of all prompts.
"""

import math
from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from torch import Tensor

from triptych.metrics.gathered_metric import GatheredMetric


def samples_by_group(texts: Sequence[str], group_B: Tensor) -> list[list[str]]:
    """Turn the texts of a rollout into one list per prompt.

    Args:
        texts: B texts.
        group_B: Texts with the same number answer the same prompt.

    Returns:
        The texts of each group, groups in the order of their first text.

    Raises:
        ValueError: If there is not one number per text.

    >>> samples_by_group(["a", "b", "c"], torch.tensor([4, 2, 4]))
    [['a', 'c'], ['b']]
    """
    if len(texts) != len(group_B):
        raise ValueError(f"got {len(texts)} texts and {len(group_B)} group numbers: give one each.")
    groups: dict[int, list[str]] = {}
    for text, group in zip(texts, group_B.tolist(), strict=True):
        groups.setdefault(group, []).append(text)
    return list(groups.values())


def check_samples(samples: Sequence[Sequence[str]]) -> None:
    """Check that there is one non-empty list of texts per prompt.

    Raises:
        ValueError: If a prompt's samples are a single string, or there are none.
    """
    for number, of_prompt in enumerate([samples] if isinstance(samples, str) else samples):
        if isinstance(of_prompt, str):
            raise ValueError(
                f"the samples of prompt {number} are the string {of_prompt[:40]!r}: give a list of "
                "texts for each prompt ([texts] where there is only one prompt)."
            )
        if not len(of_prompt):
            raise ValueError(f"prompt {number} has no samples: leave it out, or give some.")


def exact_mean(values: Iterable[float]) -> float:
    """Average the values that are not nan, with an exactly rounded sum; nan without such a value.

    >>> exact_mean([0.1] * 10), exact_mean([1.0, math.nan])
    (0.1, 1.0)
    """
    kept = [value for value in values if not math.isnan(value)]
    return math.fsum(kept) / len(kept) if kept else math.nan


def scalars(values: Mapping[str, float], device: torch.device) -> dict[str, Tensor]:
    """Make float64 scalars of numbers, by the same names."""
    return {
        name: torch.tensor(value, dtype=torch.float64, device=device)
        for name, value in values.items()
    }


class PromptMeans(GatheredMetric):
    """Named values of each prompt, averaged over the prompts for which they are defined.

    Args:
        names: Names of a prompt's values.
        kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(self, names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.names = tuple(names)
        self.add_row_state("prompt_values", torch.float64)

    def add_prompts(self, values: Sequence[Mapping[str, float]]) -> None:
        """Add the values of some prompts; nan where one is not defined."""
        rows = [[float(of_prompt[name]) for name in self.names] for of_prompt in values]
        self.append_rows("prompt_values", torch.tensor(rows, dtype=torch.float64))

    def compute(self) -> dict[str, Tensor]:
        """Average over prompts: float64 scalars by name; nan where no prompt has a value."""
        values_PK = self.rows("prompt_values").view(-1, len(self.names)).cpu()
        means = [exact_mean(column) for column in values_PK.T.tolist()]
        return scalars(dict(zip(self.names, means, strict=True)), self.device)


class PromptMetric(PromptMeans):
    """A metric of sampled texts that `PolicyOptimization` accepts under `metrics:`.

    The contract:

    - `update(samples)` gets **one list of texts per prompt**, not a flat list of texts. No list is
      empty.
    - With `takes_scores = True` the call is `update(samples, scores=scores)`, where `scores` holds
      one reward per sample, in lists of the same lengths; nan where scoring failed.
    - `compute()` returns a scalar tensor by name. Each is logged as `val/<set>/<name>`.

    A subclass names its values and writes `measure`, which gets the texts of one prompt. Where that
    is not enough it overrides `update`, too. A complete metric, in a file outside of this project:

    >>> class MeanLength(PromptMetric):
    ...     def __init__(self) -> None:
    ...         super().__init__(["characters_per_sample"])
    ...
    ...     def measure(self, texts: Sequence[str]) -> dict[str, float]:
    ...         return {"characters_per_sample": sum(map(len, texts)) / len(texts)}
    >>> metric = MeanLength()
    >>> metric.update([["ab", "abcd"], ["a"]])  # two prompts
    >>> metric.compute()["characters_per_sample"].item()  # (3 + 1) / 2
    2.0

    Args:
        names: Names of a prompt's values.
        kwargs: Options of `torchmetrics.Metric`.
    """

    takes_scores: ClassVar[bool] = False

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of unequal prompts, with short and empty texts.

        A subclass with required constructor arguments overrides it.
        """
        make: Any = cls
        return make(), [
            ([["a b a b", "b a. c"], ["the cat sat", "the cat sat"]],),
            ([["one"]],),
            ([["Ünder the  sea\n", "under the sea", ""]],),
            ([],),
        ]

    def update(self, samples: Sequence[Sequence[str]]) -> None:
        """Measure the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, at least one per prompt.

        Raises:
            ValueError: If a prompt has no samples, or a single string for them.
        """
        check_samples(samples)
        self.add_prompts([self.measure(texts) for texts in samples])

    @abstractmethod
    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Measure the samples of one prompt, at least one; nan where a value is not defined."""


class PooledTextMetric(PromptMetric):
    """A measure of a set of texts, within each prompt and over the texts of all prompts together.

    Args:
        names: Names of the measured values.
        overall: Keep all texts, to measure them together as well, as `overall_<name>`. This costs
            their UTF-8 bytes in memory, on every rank in `compute`.
        kwargs: Options of `torchmetrics.Metric`.
    """

    def __init__(self, names: Sequence[str], overall: bool, **kwargs: Any) -> None:
        super().__init__(names, **kwargs)
        self.overall = overall
        if overall:
            self.add_row_state("text_bytes", torch.uint8)
            self.add_row_state("text_lengths", torch.int64)
            self.add_row_state("text_positions", torch.int64)

    def update(
        self, samples: Sequence[Sequence[str]], positions: Sequence[int] | None = None
    ) -> None:
        """Measure the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, at least one per prompt.
            positions: Place of each prompt in the data. It orders the texts for overall measures
                that depend on their order (their docstring says so). Without it texts are taken in
                the order of arrival, rank after rank.

        Raises:
            ValueError: If a prompt has no samples, or a single string for them, or there is not
                one position per prompt.
        """
        check_samples(samples)
        if positions is not None and len(positions) != len(samples):
            raise ValueError(
                f"{type(self).__name__} got {len(positions)} positions for {len(samples)} prompts: "
                "give the place of each prompt, or no positions."
            )
        self.add_prompts([self.measure(of_prompt) for of_prompt in samples])
        if self.overall:
            places = positions if positions is not None else [0] * len(samples)
            encoded = [text.encode("utf-8", "surrogatepass") for texts in samples for text in texts]
            data = np.frombuffer(b"".join(encoded), dtype=np.uint8).copy()
            self.append_rows("text_bytes", torch.from_numpy(data))
            self.append_rows("text_lengths", [len(text) for text in encoded])
            counts = [len(of_prompt) for of_prompt in samples]
            of_text = [
                place for place, count in zip(places, counts, strict=True) for _ in range(count)
            ]
            self.append_rows("text_positions", of_text)

    def compute(self) -> dict[str, Tensor]:
        """Average within prompts and, with `overall`, measure all texts together.

        Returns:
            Float64 scalars: `<name>`, the mean over prompts, and `overall_<name>`. nan where no
            value is defined.
        """
        values = super().compute()
        if self.overall:
            texts = self._all_texts()
            overall = self.measure(texts) if texts else dict.fromkeys(self.names, math.nan)
            values |= scalars(
                {f"overall_{name}": overall[name] for name in self.names}, self.device
            )
        return values

    def _all_texts(self) -> list[str]:
        """Return every text seen on all ranks, by position and then by arrival."""
        data = self.rows("text_bytes").cpu().numpy().tobytes()
        lengths_N = self.rows("text_lengths").cpu()
        ends = lengths_N.cumsum(0).tolist()
        texts = [
            data[end - length : end].decode("utf-8", "surrogatepass")
            for end, length in zip(ends, lengths_N.tolist(), strict=True)
        ]
        order = self.rows("text_positions").cpu().argsort(stable=True).tolist()
        return [texts[i] for i in order]
