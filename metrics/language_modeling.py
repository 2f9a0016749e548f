"""Prediction of text: nats per token, bits per byte, perplexity."""

import math
from collections.abc import Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric


class TokenNLL(SummedMetric):
    """The negative log-likelihood of a corpus: its nats per token and its bits per byte.

    A ratio of sums, not a mean over batches, so the value does not depend on the split of tokens
    into batches and ranks. Bits per byte are comparable between tokenizers, nats per token are not.

    Args:
        kwargs: Options of `torchmetrics.Metric`.

    >>> metric = TokenNLL()
    >>> metric.update(torch.tensor([0.5, 1.5]), num_tokens=2, num_bytes=8)
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'nll_nats_per_token': 1.0, 'bits_per_byte': 0.3607, 'perplexity': 2.7183}
    """

    higher_is_better = False
    nll_sum_nats: Tensor
    num_tokens: Tensor
    num_bytes: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_sum("nll_sum_nats", torch.float64)
        self.add_sum("num_tokens", torch.int64)
        self.add_sum("num_bytes", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric and batches of sums, of positions and of nothing."""
        return cls(), [
            (torch.tensor(3.25, dtype=torch.float32), torch.tensor(4), torch.tensor(11)),
            (
                torch.tensor([[0.5, 0.0]], dtype=torch.float32),
                torch.tensor([[True, False]]),
                torch.tensor([[3, 0]]),
            ),
            (torch.zeros(0, dtype=torch.float32), 0, 0),
        ]

    def update(
        self, nll_nats: Tensor | float, num_tokens: Tensor | int, num_bytes: Tensor | int = 0
    ) -> None:
        """Add a batch; each argument is a number, or a tensor of any shape that is summed.

        Args:
            nll_nats: Negative log-likelihood in nats, 0 where nothing is predicted.
            num_tokens: Tokens predicted: a count, or the mask that is True where one is.
            num_bytes: UTF-8 bytes of the tokens predicted. Give them in every update or in none.
        """
        self.nll_sum_nats = self.nll_sum_nats + _sum(nll_nats, torch.float64)
        self.num_tokens = self.num_tokens + _sum(num_tokens, torch.int64)
        self.num_bytes = self.num_bytes + _sum(num_bytes, torch.int64)

    def compute(self) -> dict[str, Tensor]:
        """Divide the sums of all ranks.

        Returns:
            Float64 scalars. `nll_nats_per_token`. `bits_per_byte`: nll / (bytes ln 2); tokens that
            stand for no text, such as an end of document, add to its bits and not to its bytes.
            `perplexity`: exp(nats per token). nan where there are no tokens, or no bytes.
        """
        nll_nats_per_token = self.nll_sum_nats / self.num_tokens
        bits_per_byte = self.nll_sum_nats / math.log(2) / self.num_bytes
        return {
            "nll_nats_per_token": nll_nats_per_token,
            "bits_per_byte": bits_per_byte.where(self.num_bytes > 0, math.nan),
            "perplexity": nll_nats_per_token.exp(),
        }


def _sum(values: Tensor | float, dtype: torch.dtype) -> Tensor:
    return torch.as_tensor(values, dtype=dtype).sum()
