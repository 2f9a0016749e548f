"""Coverage and entropy of the known good answers among samples.

Shapes: M known modes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.prompt_metric import PromptMetric, check_samples, scalars
from triptych.metrics.question_answering import normalize_answer

Mode = str | Sequence[str]
FindMode = Callable[[str, Sequence[Sequence[str]]], int | None]


def first_match(text: str, modes: Sequence[Sequence[str]]) -> int | None:
    """Find the mode that a text names first.

    A name must occur as whole words; case is ignored.

    Args:
        text: What was sampled.
        modes: The names of each mode (an answer and its aliases).

    Returns:
        The number of the mode with the earliest name. Of two names that begin at the same place the
        longer one counts, of equal names the first. None where no name occurs.

    >>> first_match("I would say 12, or 2.", [["1"], ["2"], ["12", "twelve"]])
    2
    """
    best: tuple[int, int, int] | None = None
    for number, names in enumerate(modes):
        for name in names:
            found = re.search(rf"(?<!\w){re.escape(name)}(?!\w)", text, re.IGNORECASE)
            if found and name:
                place = (found.start(), -len(found.group()), number)
                best = place if best is None else min(best, place)
    return None if best is None else best[2]


def equal_answer(text: str, modes: Sequence[Sequence[str]]) -> int | None:
    """Find the mode that equals a whole text, after SQuAD's normalisation.

    >>> equal_answer("The Nile.", [["Rhine"], ["Nile", "Nile River"]])
    1
    """
    normalized = normalize_answer(text)
    for number, names in enumerate(modes):
        if any(normalize_answer(name) == normalized for name in names):
            return number
    return None


def entropy_bits(counts: Sequence[int]) -> float:
    """Compute the Shannon entropy of shares n_m / sum n, in bits; nan where all counts are 0.

    >>> entropy_bits([2, 1, 1, 0]), entropy_bits([3])
    (1.5, 0.0)
    """
    total = sum(counts)
    if total == 0:
        return math.nan
    return math.fsum(count / total * math.log2(total / count) for count in counts if count)


class ModeCoverage(PromptMetric):
    """Entropy and coverage of the known modes among a prompt's samples, averaged over prompts.

    With n_m the samples of a prompt that fall in mode m of M, and k samples in all:

    - `mode_entropy_bits`: of n_m / sum n, in [0, log2 M]; samples in no mode are left out, and so
      are prompts without any sample in a mode;
    - `mode_coverage`: modes with n_m > 0, over M;
    - `no_mode_share`: (k - sum n) / k.

    Where all prompts have the same modes (given to the constructor), the samples of all prompts are
    also counted together, as `overall_...`. Ten samples of each of a thousand prompts estimate an
    entropy that ten samples alone cannot.

    Args:
        modes: Names of the modes of every prompt, each a name or a list of names that mean the
            same. None: `update` gets them for each prompt.
        find_mode: Assigns a text to a mode: `first_match`, `equal_answer`, or your own picklable
            callable, `(text, names of each mode) -> number or None`.
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If there are no modes, or one has no name.

    >>> metric = ModeCoverage(modes=["1", "2"])
    >>> metric.update([["1", "2", "1", "1 or 2", "none"]])
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'mode_entropy_bits': 0.8113, 'mode_coverage': 1.0, 'no_mode_share': 0.2,
     'overall_mode_entropy_bits': 0.8113, 'overall_mode_coverage': 1.0,
     'overall_no_mode_share': 0.2}
    """

    NAMES = ("mode_entropy_bits", "mode_coverage", "no_mode_share")
    num_in_mode: Tensor
    num_samples: Tensor

    def __init__(
        self,
        modes: Sequence[Mode] | None = None,
        find_mode: FindMode = first_match,
        **kwargs: Any,
    ) -> None:
        super().__init__(self.NAMES, **kwargs)
        self.modes = None if modes is None else _checked_modes(modes)
        self.find_mode = find_mode
        if self.modes is not None:
            self.add_sum("num_in_mode", torch.int64, (len(self.modes),))
            self.add_sum("num_samples", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric with modes and batches of unequal prompts."""
        return cls(modes=["1", ["2", "two"], "3"]), [
            ([["1", "2", "two", "four"], ["3"]],),
            ([["none of them"], ["1 2", "2 1", "x"]],),
            ([],),
        ]

    def update(
        self,
        samples: Sequence[Sequence[str]],
        modes: Sequence[Sequence[Mode]] | None = None,
    ) -> None:
        """Count the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, at least one per prompt.
            modes: The modes of each prompt, if the constructor had none.

        Raises:
            ValueError: If modes are missing, or given twice, or their number differs from that of
                the prompts.
        """
        check_samples(samples)
        if (modes is None) == (self.modes is None):
            raise ValueError(
                "ModeCoverage needs the known modes once: in its constructor where all prompts "
                "have the same, else in every update."
            )
        if modes is not None and len(modes) != len(samples):
            raise ValueError(
                f"ModeCoverage got modes for {len(modes)} prompts and samples for {len(samples)}: "
                "give the modes of each prompt."
            )
        known = [self.modes] * len(samples) if modes is None else list(map(_checked_modes, modes))
        values = []
        for texts, of_prompt in zip(samples, known, strict=True):
            assert of_prompt is not None
            counts = self._counts(texts, of_prompt)
            values.append(self._shares(counts, len(texts)))
            if self.modes is not None:
                self.num_in_mode = self.num_in_mode + torch.tensor(
                    counts, device=self.device, dtype=torch.int64
                )
                self.num_samples = self.num_samples + len(texts)
        self.add_prompts(values)

    def measure(
        self, texts: Sequence[str], modes: Sequence[Mode] | None = None
    ) -> Mapping[str, float]:
        """Measure the samples of one prompt with its modes, or with those of the constructor."""
        known = self.modes if modes is None else _checked_modes(modes)
        if known is None:
            raise ValueError(
                "ModeCoverage has no modes from its constructor: give those of a prompt"
            )
        return self._shares(self._counts(texts, known), len(texts))

    def _counts(self, texts: Sequence[str], modes: Sequence[Sequence[str]]) -> list[int]:
        found = Counter(self.find_mode(text, modes) for text in texts)
        return [found[mode] for mode in range(len(modes))]

    def _shares(self, counts: Sequence[int], num_samples: int) -> dict[str, float]:
        num_hit = sum(count > 0 for count in counts)
        values = (
            entropy_bits(counts),
            num_hit / len(counts) if num_samples else math.nan,
            1 - sum(counts) / num_samples if num_samples else math.nan,
        )
        return dict(zip(self.NAMES, values, strict=True))

    def compute(self) -> dict[str, Tensor]:
        """Average over prompts and, where all have the same modes, count all together.

        Returns:
            Float64 scalars by the names of the class; nan where nothing was seen.
        """
        values = super().compute()
        if self.modes is not None:
            overall = self._shares(self.num_in_mode.tolist(), int(self.num_samples))
            values |= scalars({f"overall_{key}": one for key, one in overall.items()}, self.device)
        return values


def _checked_modes(modes: Sequence[Mode]) -> list[list[str]]:
    names = [[mode] if isinstance(mode, str) else list(mode) for mode in modes]
    if isinstance(modes, str) or not names or not all(names) or not all(map(all, names)):
        raise ValueError(f"modes={modes!r}: give at least one mode, each with non-empty names.")
    return names
