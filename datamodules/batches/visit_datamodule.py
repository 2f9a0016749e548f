"""Batches that teach one item after another: the datamodule around `visits`."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from jsonargparse.typing import PositiveInt

from triptych.datamodules.batches.packed_datamodule import DataPart, PackedDataModule, RowFormat
from triptych.datamodules.batches.resumable_loader import ResumableLoader
from triptych.datamodules.batches.visits import VisitCollate, VisitSource, VisitStream

Source = TypeVar("Source", bound=VisitSource)


class VisitedPart(DataPart, Generic[Source]):
    """A family of data that is taught item by item.

    Args:
        items_per_visit: Items taught together, over all processes.
        steps_per_visit: Consecutive batches that repeat the same items.
        shuffle: Whether the order is drawn anew for each pass.
    """

    def __init__(self, items_per_visit: int, steps_per_visit: int, shuffle: bool) -> None:
        self.order: tuple[int, int, bool] = (items_per_visit, steps_per_visit, shuffle)
        self._made: tuple[RowFormat, Source] | None = None

    @abstractmethod
    def make_visits(self, row_format: RowFormat) -> Source:
        """Read the items and their documents."""

    def visits(self, row_format: RowFormat) -> Source:
        """Return the items with their documents, read on first use."""
        if self._made is None or self._made[0] != row_format:
            self._made = row_format, self.make_visits(row_format)
        return self._made[1]

    def train_stream(self, row_format: RowFormat) -> VisitStream:
        """Return the visits in order."""
        return VisitStream(len(self.visits(row_format).ids), *self.order, seed=row_format.seed)


class VisitDataModule(PackedDataModule):
    """Padded batches of one visit each, resumable and the same on any number of processes.

    An epoch is one pass over the items: `trainer.max_epochs` is the number of passes. A batch has
    the keys of `visits.VisitCollate`. Several processes divide the documents of a visit among them.
    A checkpoint may continue on another number of processes.

    Args:
        part: The items to teach.
        eval_batch_size: Validation rows per process and batch.
        **kwargs: Further settings of `PackedDataModule`; `context_length` bounds one document.
    """

    def __init__(
        self,
        part: VisitedPart[Any],
        *,
        eval_batch_size: PositiveInt = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [part],
            [1.0],
            batch_size=1,  # one visit, with any number of rows
            eval_batch_size=eval_batch_size,
            rows_per_epoch=None,
            **kwargs,
        )
        self.part = part

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches."""
        (row_format,) = self._row_formats()
        stream = self.part.train_stream(row_format)
        return ResumableLoader(
            stream,
            VisitCollate(self.part.visits(row_format), row_format, self._shard),
            batch_size=1,
            rows_per_epoch=stream.num_rows(),
            # Each process reads every visit; `VisitCollate` selects its documents.
            shard=None,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )
