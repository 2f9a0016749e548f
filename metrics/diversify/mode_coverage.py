"""Which of the known good answers are sampled, and how evenly.

Shapes: M known modes.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.prompt_metric import PromptMetric, check_samples
from triptych.metrics.question_answering import normalize_answer

Mode = str | Sequence[str]
FindMode = Callable[[str, Sequence[Sequence[str]]], int | None]


def first_match(text: str, modes: Sequence[Sequence[str]]) -> int | None:
    """Find the mode that a text names first.

    A name counts where it stands as whole words, in upper or lower case.

    Args:
        text: What was sampled.
        modes: The names of each mode (an answer and its aliases).

    Returns:
        The number of the mode whose name begins earliest; of two that begin together the longer;
        of equal ones the first. None where no name occurs.

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
    """Find the mode that a text is, after SQuAD's normalisation, with nothing around it.

    >>> equal_answer("The Nile.", [["Rhine"], ["Nile", "Nile River"]])
    1
    """
    normalized = normalize_answer(text)
    for number, names in enumerate(modes):
        if any(normalize_answer(name) == normalized for name in names):
            return number
    return None


def entropy_bits(counts: Sequence[int]) -> float:
    """Shannon entropy of shares n_m / sum n, in bits; nan where all counts are 0.

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

    - `mode_entropy_bits`: of n_m / sum n, in [0, log2 M]; samples in no mode are left out, and
      prompts with nothing else are not averaged;
    - `mode_coverage`: modes with n_m > 0, over M;
    - `no_mode_share`: (k - sum n) / k.

    Where all prompts have the same modes, given to the constructor, the samples of all prompts are
    also counted together, as `overall_...`: ten samples each of a thousand equal prompts show an
    entropy that no single ten can.

    Args:
        modes: Names of the modes of every prompt, each a name or a list of names that mean the
            same. None: `update` gets them for each prompt.
        find_mode: Says which mode a text falls in: `first_match`, `equal_answer`, or a picklable
            callable of your own, `(text, names of each mode) -> number or None`.
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
            samples: The texts sampled for each prompt, at least one a prompt.
            modes: The modes of each prompt; where the constructor had none, and only there.

        Raises:
            ValueError: If modes are missing, or given twice, or not as many as prompts.
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
        values = []
        for number, texts in enumerate(samples):
            of_prompt = self.modes if modes is None else _checked_modes(modes[number])
            assert of_prompt is not None
            found = Counter(self.find_mode(text, of_prompt) for text in texts)
            counts = [found[mode] for mode in range(len(of_prompt))]
            values.append(self._measure(counts, len(texts)))
            if self.modes is not None:
                self.num_in_mode = self.num_in_mode + torch.tensor(counts, device=self.device)
                self.num_samples = self.num_samples + len(texts)
        self.add_prompts(values)

    def _measure(self, counts: Sequence[int], num_samples: int) -> dict[str, float]:
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
        values = self.prompt_means()
        if self.modes is not None:
            overall = self._measure(self.num_in_mode.tolist(), int(self.num_samples))
            for name, value in overall.items():
                values[f"overall_{name}"] = torch.tensor(
                    value, dtype=torch.float64, device=self.device
                )
        return values


def _checked_modes(modes: Sequence[Mode]) -> list[list[str]]:
    names = [[mode] if isinstance(mode, str) else list(mode) for mode in modes]
    if isinstance(modes, str) or not names or not all(names) or not all(map(all, names)):
        raise ValueError(f"modes={modes!r}: give at least one mode, each with non-empty names.")
    return names
