"""Which rows of a model's value tables learn from a batch: the settings, and the choice."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

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
    """How many of the slots that a batch read learn from it, and which.

    Args:
        num_slots: t, the number of rows. Exactly one of this and `score_share` is given.
        score_share: Take the fewest rows that hold this share of all score: more rows for a batch
            that is broad, fewer for one that is narrow. 1 takes every row that scores above 0.
        ranking: `tfidf`, `tf`, `kl` or `all`; see `slot_scores`. `all` goes with
            `score_share: 1`.
        idf_exponent: See `tf_idf_scores`.
        scope: `per_table` selects t rows in each value table (layers with a table of their own:
            t rows a layer). `pooled` lets all tables compete for t rows in all, by their scores.

    Raises:
        ValueError: on settings that cannot work, saying which and what to change.

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
        for name, kinds in (("ranking", get_args(Ranking)), ("scope", get_args(Scope))):
            if getattr(self, name) not in kinds:
                raise ValueError(f"{name} is {getattr(self, name)!r}: choose {', '.join(kinds)}")
        if self.ranking == "all" and self.score_share != 1:
            raise ValueError(
                "ranking: all scores every slot alike, so there is no best among them: set "
                "score_share: 1 and num_slots: null, or rank by tfidf, tf or kl"
            )

    @property
    def needs_background(self) -> bool:
        """Whether the ranking holds a batch's reads against those of other text."""
        return self.ranking in ("tfidf", "kl")

    def select(
        self, counts: Sequence[Tensor], background: Sequence[TableStatistics] | None = None
    ) -> list[Tensor]:
        """Choose rows.

        Args:
            counts: Accesses of this batch in each table, int64 (S,).
            background: How other text reads each table; `tfidf` and `kl` need it.

        Returns:
            For each table its rows_U, int64, ascending. Only rows that were read and score above
            0: fewer than `num_slots` where there are not as many. Among equals the lower rows, and
            those of the earlier table.
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
        """Memory for the scores of a table, the same in every step; None where none is written."""
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
