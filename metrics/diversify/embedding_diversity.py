"""Semantic diversity of texts: cosine distances and the Vendi score of embeddings.

Shapes: N texts, D width of an embedding.
"""

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.diversify.prompt_metric import PromptMetric, check_samples, scalars
from triptych.metrics.diversify.vendi_score import (
    cosine_spectrum,
    vendi_of_package,
    vendi_of_spectrum,
)
from triptych.objectives.text_embedder import Embedder, TextEmbedder, letter_counts


class EmbeddingMetric(PromptMetric):
    """A measure of a set of embeddings, within each prompt and over all prompts together.

    Args:
        names: Names of the measured values.
        embedder: Turns N texts into a float tensor (N, D): any picklable callable, or the name or
            path of a sentence-transformers model. None: all-MiniLM-L6-v2 (see `TextEmbedder`).
            Metrics that share a `TextEmbedder` embed each batch once.
        overall: Keep all embeddings, to measure them together as well, as `overall_<name>`.
        kwargs: Options of `torchmetrics.Metric`.
    """

    num_texts: Tensor

    def __init__(
        self, names: Sequence[str], embedder: Embedder | str | None, overall: bool, **kwargs: Any
    ) -> None:
        super().__init__(names, **kwargs)
        self.embedder = embedder if callable(embedder) else TextEmbedder(embedder)
        self.overall = overall
        if overall:
            self.add_row_state("embeddings", torch.float32)
            self.add_sum("num_texts", torch.int64)

    @classmethod
    def example(cls) -> tuple[Self, Sequence[tuple[Any, ...]]]:
        """Return a fresh metric of letter counts and batches of unequal prompts."""
        make: Any = cls  # a concrete subclass has its own arguments
        return make(embedder=letter_counts), [
            ([["the cat sat", "a dog ran", "the cat sat"], ["one", "two"]],),
            ([["alone"]],),
            ([["under the sea", "over the hill", "up, up and away", "xyz"]],),
            ([],),
        ]

    @abstractmethod
    def measure_embeddings(self, embeddings_ND: Tensor) -> Mapping[str, float]:
        """Measure one set of embeddings, at least one; nan where a value is not defined."""

    def measure(self, texts: Sequence[str]) -> Mapping[str, float]:
        """Embed and measure one set of texts."""
        return self.measure_embeddings(self._embedded(texts))

    def update(self, samples: Sequence[Sequence[str]]) -> None:
        """Embed and measure the samples of some prompts.

        Args:
            samples: The texts sampled for each prompt, at least one per prompt.

        Raises:
            ValueError: If a prompt has no samples, or a single string for them, or an embedding is
                zero or not finite.
        """
        check_samples(samples)
        if not samples:
            return
        embeddings_ND = self._embedded([text for of_prompt in samples for text in of_prompt])
        parts = embeddings_ND.split([len(of_prompt) for of_prompt in samples])
        self.add_prompts([self.measure_embeddings(part) for part in parts])
        if self.overall:
            self.append_rows("embeddings", embeddings_ND)
            self.num_texts = self.num_texts + len(embeddings_ND)

    def _embedded(self, texts: Sequence[str]) -> Tensor:
        embeddings_ND = torch.as_tensor(self.embedder(texts), dtype=torch.float32).detach().cpu()
        has_cosine_N = embeddings_ND.isfinite().all(-1) & embeddings_ND.any(-1)
        if not has_cosine_N.all():
            text = texts[has_cosine_N.tolist().index(False)]
            raise ValueError(
                f"the embedding of {text[:60]!r} is zero or not finite: it has no cosine. Leave "
                "the text out, or take another embedder."
            )
        return embeddings_ND

    def compute(self) -> dict[str, Tensor]:
        """Average within prompts and, with `overall`, measure all embeddings together.

        Returns:
            Float64 scalars: `<name>`, the mean over prompts, and `overall_<name>`. nan where no
            value is defined.
        """
        values = super().compute()
        if self.overall:
            num_texts = int(self.num_texts)
            overall: Mapping[str, float] = dict.fromkeys(self.names, math.nan)
            if num_texts:
                overall = self.measure_embeddings(self.rows("embeddings").cpu().view(num_texts, -1))
            values |= scalars({f"overall_{key}": overall[key] for key in self.names}, self.device)
        return values


class EmbeddingDistance(EmbeddingMetric):
    """The mean cosine distance of embeddings.

    `cosine_distance` is the mean of 1 - cos over the N (N - 1) pairs of two different samples, nan
    for a single sample. `remote_clique` (Directed Diversity, Cox et al., CHI 2021) is the mean over
    all N^2 pairs, a sample with itself included: (N - 1) / N times the other, so it depends on N.
    Both follow from the sum s of N unit vectors, as all cosines sum to |s|^2. No N x N matrix is
    formed.

    compat="diversity" is `remote_clique` of the package `diversity` (0.3.1), which computes in
    float32 and rounds to 3 digits. Its default model differs. It gives `remote_clique` only.

    Args:
        embedder: See `EmbeddingMetric`.
        overall: Also measure all texts together.
        compat: None, or "diversity" (needs scikit-learn).
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If `compat` is not known.

    >>> metric = EmbeddingDistance(embedder=letter_counts, overall=False)
    >>> metric.update([["a", "b", "a"]])
    >>> {name: round(value.item(), 4) for name, value in metric.compute().items()}
    {'cosine_distance': 0.6667, 'remote_clique': 0.4444}
    """

    higher_is_better = True

    def __init__(
        self,
        embedder: Embedder | str | None = None,
        overall: bool = True,
        compat: str | None = None,
        **kwargs: Any,
    ) -> None:
        names = ["remote_clique"] if compat else ["cosine_distance", "remote_clique"]
        super().__init__(names, embedder, overall, **kwargs)
        if compat not in (None, "diversity"):
            raise ValueError(f"compat={compat!r} is not known: take null or 'diversity'.")
        self.compat = compat

    def measure_embeddings(self, embeddings_ND: Tensor) -> Mapping[str, float]:
        """Measure one set of embeddings."""
        if self.compat:
            import numpy as np
            from sklearn.metrics.pairwise import cosine_distances

            row_means = np.mean(cosine_distances(embeddings_ND.numpy()), axis=1)
            return {"remote_clique": float(np.mean(row_means).round(3))}
        unit_ND = torch.nn.functional.normalize(embeddings_ND.double(), dim=-1)
        num_texts = len(unit_ND)
        sum_of_cosines = unit_ND.sum(0).square().sum().item()
        total = max(0.0, num_texts**2 - sum_of_cosines)  # a sample is at distance 0 from itself
        num_pairs = num_texts * (num_texts - 1)
        return {
            "cosine_distance": total / num_pairs if num_pairs else math.nan,
            "remote_clique": total / num_texts**2,
        }


class VendiScore(EmbeddingMetric):
    """The effective number of different samples: 1 if all are equal, N if all are orthogonal.

    exp of the Rényi entropy of order q of the eigenvalues of K / N, with K the cosines of the
    embeddings (`vendi_score`). The eigenvalues come from the smaller of the N x N matrix of
    cosines and the D x D matrix of second moments.

    Source: The Vendi Score, 2210.02410, definition 3.1; orders other than 1: 2310.12952.

    compat="vendi-score" is `embedding_vendi_score` of the package `vendi-score` (0.0.3) from the
    embeddings on, in their precision and with its bugs: for N < D it calls `score_X`, which
    *ignores q* and takes 1; and it counts eigenvalues that are zero up to rounding, which distorts
    orders below 1. (More bugs, not reproduced: `intdiv_X` calls `intdiv` without a kernel and
    fails; `intdiv` reads a name that does not exist; `scipy.sparse.csr` is deprecated; the order
    infinity is the string "inf".)

    Args:
        order: q, from 0 (the rank) over 1 (Shannon) to infinity (1 over the largest share).
        embedder: See `EmbeddingMetric`.
        overall: Also measure all texts together.
        compat: None, or "vendi-score" (needs scipy and scikit-learn).
        kwargs: Options of `torchmetrics.Metric`.

    Raises:
        ValueError: If the order is negative, or `compat` is not known.

    >>> metric = VendiScore(embedder=letter_counts, overall=False)
    >>> metric.update([["a", "b", "c", "a"]])  # shares 1/2, 1/4, 1/4: 2^1.5
    >>> round(metric.compute()["vendi_score"].item(), 4)
    2.8284
    """

    higher_is_better = True

    def __init__(
        self,
        order: float = 1.0,
        embedder: Embedder | str | None = None,
        overall: bool = True,
        compat: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(["vendi_score"], embedder, overall, **kwargs)
        if not order >= 0:
            raise ValueError(f"order={order} must be 0 or more (infinity: .inf in YAML).")
        if compat not in (None, "vendi-score"):
            raise ValueError(f"compat={compat!r} is not known: take null or 'vendi-score'.")
        self.order = order
        self.compat = compat

    def measure_embeddings(self, embeddings_ND: Tensor) -> Mapping[str, float]:
        """Measure one set of embeddings."""
        if self.compat:
            return {"vendi_score": vendi_of_package(embeddings_ND.numpy(), self.order)}
        return {"vendi_score": vendi_of_spectrum(cosine_spectrum(embeddings_ND), self.order)}
