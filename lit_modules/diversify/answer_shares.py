"""Share of each known answer among the samples of a set, where all its prompts share them.

Shapes: M known answers.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from torchmetrics import Metric

#: A set with more known answers has too many to list.
MOST_ANSWERS = 4


class AnswerShares(Metric):
    """Shares of the known answers, over all samples and ranks.

    Args:
        answers: The known answers of every prompt of the set.
    """

    counts_M: Tensor
    num_samples: Tensor
    num_unlike: Tensor

    def __init__(self, answers: Sequence[str]) -> None:
        super().__init__()
        self.answers = list(answers)
        for name, shape in (("counts_M", (len(self.answers),)), ("num_samples", ())):
            self.add_state(name, torch.zeros(shape, dtype=torch.int64), dist_reduce_fx="sum")
        self.add_state("num_unlike", torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, answers: Sequence[str], counts: Mapping[str, int], num_samples: int) -> None:
        """Count a prompt's samples.

        Args:
            answers: The prompt's known answers.
            counts: Known answer -> number of samples that give it.
            num_samples: Number of all samples.
        """
        if list(answers) != self.answers:
            self.num_unlike += 1
            return
        self.counts_M += torch.tensor(
            [counts.get(a, 0) for a in answers], device=self.device, dtype=torch.int64
        )
        self.num_samples += num_samples

    def compute(self) -> dict[str, Tensor]:
        """Return `answer_share/<answer>`; nothing if prompts have different answers."""
        if self.num_unlike or not self.num_samples:
            return {}
        shares_M = self.counts_M.float() / self.num_samples
        names = (f"answer_share/{answer}" for answer in self.answers)
        return dict(zip(names, shares_M, strict=True))
