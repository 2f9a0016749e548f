"""Selection of the rows of value tables that learn from a batch."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from triptych.objectives.remember.slot_scores import (
    Ranking,
    TableStatistics,
    slot_scores,
    slots_by_share,
    top_slots,
)

# Shapes: S slots of a table, U selected rows

Scope = Literal["per_table", "pooled"]


@dataclass(frozen=True)
class RowSelection:
    """Settings for the number and the choice of the slots that learn from a batch.

    Args:
        num_slots: t, the number of rows. Give exactly one of `num_slots` and `score_share`.
        score_share: Take the fewest rows that hold this share of the total score: more rows for a
            broad batch, fewer for a narrow one. 1 takes every row that scores above 0.
        ranking: `tfidf`, `tf`, `kl` or `all`; see `slot_scores`. `all` goes with
            `score_share: 1`.
        idf_exponent: See `tf_idf_scores`.
        scope: `per_table` selects t rows in each value table. `pooled` selects t rows in total,
            for which all tables compete by their scores.

    Raises:
        ValueError: on settings that cannot work, with the change to make.

    Source: 2510.15103, section 4. Deviations: the share of the score and the pool are ours.
    """

    num_slots: int | None = 500
    score_share: float | None = None
    ranking: Ranking = "tfidf"
    idf_exponent: float = 1.0
    scope: Scope = "per_table"
    _scores: dict[int, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if (self.num_slots is None) == (self.score_share is None):
            raise ValueError(
                f"num_slots is {self.num_slots} and score_share {self.score_share}: give one of "
                "them and set the other to null"
            )
        if self.num_slots is not None and self.num_slots < 1:
            raise ValueError(f"num_slots is {self.num_slots}: set it to at least 1")
        if self.score_share is not None and not 0 < self.score_share <= 1:
            raise ValueError(f"score_share is {self.score_share}: set it above 0 and to at most 1")
        if not 0 < self.idf_exponent < float("inf"):
            raise ValueError(f"idf_exponent is {self.idf_exponent}: set it above 0")
        if self.ranking == "all" and self.score_share != 1:
            raise ValueError(
                "ranking: all scores every slot alike, so there is no best among them: set "
                "score_share: 1 and num_slots: null, or rank by tfidf, tf or kl"
            )

    @property
    def needs_background(self) -> bool:
        """Whether the ranking compares a batch's accesses with those of other text."""
        return self.ranking in ("tfidf", "kl")

    def select(
        self, counts: Sequence[Tensor], background: Sequence[TableStatistics] | None = None
    ) -> list[Tensor]:
        """Select rows.

        Args:
            counts: Accesses of this batch in each table, int64 (S,).
            background: Accesses of other text to each table; `tfidf` and `kl` need it.

        Returns:
            For each table its rows_U, int64, ascending. Only rows that were read and score above 0,
            so there may be fewer than `num_slots`. Of equal scores the lower rows are taken, and
            rows of the earlier table.
        """
        others = background if background is not None else [None] * len(counts)
        scores = [
            slot_scores(self.ranking, counts_S, other, self.idf_exponent, self._kept(i, counts_S))
            for i, (counts_S, other) in enumerate(zip(counts, others, strict=True))
        ]
        if self.scope == "per_table":
            return [self._best(scores_S) for scores_S in scores]
        rows = self._best(torch.cat(scores))
        ends = torch.tensor([len(scores_S) for scores_S in scores]).cumsum(0).tolist()
        starts = [0, *ends[:-1]]
        return [
            rows[(rows >= start) & (rows < end)] - start
            for start, end in zip(starts, ends, strict=True)
        ]

    def _kept(self, table: int, counts_S: Tensor) -> Tensor | None:
        """Return the buffer for the scores of a table, reused in every step; None without one."""
        if self.ranking not in ("tfidf", "tf") or torch.is_inference_mode_enabled():
            return None
        kept = self._scores.get(table)
        if kept is None or (kept.shape, kept.device) != (counts_S.shape, counts_S.device):
            kept = torch.empty_like(counts_S, dtype=torch.float32)
            self._scores[table] = kept
        return kept

    def _best(self, scores_S: Tensor) -> Tensor:
        if self.score_share is not None:
            return slots_by_share(scores_S, self.score_share)
        return top_slots(scores_S, self.num_slots)
