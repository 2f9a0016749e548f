"""A debate task whose questions are rows of files: training rows, held-out rows, and their draw."""

import hashlib
import json
import random
from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.commune.debate_task import DebateTask, Split
from triptych.datamodules.sources.records import RecordSource, describe, source_fingerprint


class FileTask(DebateTask):
    """Chooses the rows of a split.

    Args:
        source: Training rows.
        val_source: Held-out rows; None: rows of `source` after the first `num_train`, in an order
            drawn by `seed`.
        num_train: Number of training questions; None: all.
        num_val: Number of held-out questions; None: all of `val_source`.
        seed: Seed of the choice and order of questions.
        data_dir: Base of relative paths; None: the environment's TRIPTYCH_DATA, or ./data.

    Raises:
        ValueError: if the held-out rows follow from no setting.
    """

    def __init__(
        self,
        source: RecordSource,
        val_source: RecordSource | None,
        num_train: int | None,
        num_val: int | None,
        seed: int,
        data_dir: str | None,
    ) -> None:
        if val_source is None and (num_train is None or num_val is None):
            raise ValueError(
                "without task.val_source the held-out questions come from task.source: set "
                "task.num_train and task.num_val, or give a val_source"
            )
        self.source = locate(source, data_dir)
        self.val_source = None if val_source is None else locate(val_source, data_dir)
        self.num_train, self.num_val = num_train, num_val
        self.seed = seed

    @abstractmethod
    def _read(self, source: RecordSource) -> list[Any]:
        """Read all rows of a source."""

    def _chosen(self, split: Split) -> list[Any]:
        """Read the rows of a split.

        Raises:
            ValueError: if there are too few.
        """
        if split != "train" and self.val_source is not None:
            return self._draw(self.val_source, 0, self.num_val)
        if split == "train":
            return self._draw(self.source, 0, self.num_train)
        return self._draw(self.source, self.num_train or 0, self.num_val)

    def _draw(self, source: RecordSource, skip: int, count: int | None) -> list[Any]:
        rows = self._read(source)
        if count is None:
            return rows[skip:]
        if skip + count > len(rows):
            raise ValueError(
                f"{describe(source)} has {len(rows)} questions and {skip + count} are asked for: "
                "lower task.num_train or task.num_val, or give more rows"
            )
        order = random.Random(self.seed).sample(range(len(rows)), len(rows))
        return [rows[place] for place in order[skip : skip + count]]

    def _hash(
        self, settings: Sequence[Any], embedded: Callable[[], list[dict[str, Any]]], split: Split
    ) -> str:
        """Hash the settings of the prompt and the rows."""
        sources = [self.source, *([] if self.val_source is None else [self.val_source])]
        rows = [source_fingerprint(source, embedded) for source in sources]
        return hashlib.sha256(json.dumps([list(settings), rows, split]).encode()).hexdigest()
