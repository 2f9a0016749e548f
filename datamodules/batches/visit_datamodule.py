"""Batches for learning one thing after another: the datamodule around `visits`."""

from abc import abstractmethod
from typing import Any, Generic, TypeVar

from triptych.datamodules.batches.packed_datamodule import DataPart, PackedDataModule, RowFormat
from triptych.datamodules.batches.resumable_loader import ResumableLoader
from triptych.datamodules.batches.visits import VisitCollate, VisitSource, VisitStream

Source = TypeVar("Source", bound=VisitSource)


class VisitedPart(DataPart, Generic[Source]):
    """Data that is taught item by item.

    Args:
        items_per_visit: Items taught together, over all processes.
        steps_per_visit: Consecutive batches that repeat the same items.
        shuffle: Whether each pass has an order of its own.
        item: What an item is called in the settings, such as "facts".

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(
        self, items_per_visit: int, steps_per_visit: int, shuffle: bool, item: str
    ) -> None:
        for name, value in [
            (f"{item}_per_batch", items_per_visit),
            ("steps_per_visit", steps_per_visit),
        ]:
            if value < 1:
                raise ValueError(f"data.{name} is {value}: set it to at least 1")
        self.order = (items_per_visit, steps_per_visit, shuffle)
        self._made: tuple[RowFormat, Source] | None = None

    @abstractmethod
    def make_visits(self, row_format: RowFormat) -> Source:
        """Read the items and their documents."""

    def visits(self, row_format: RowFormat) -> Source:
        """Return the items with their documents, read when first asked for."""
        if self._made is None or self._made[0] != row_format:
            self._made = row_format, self.make_visits(row_format)
        return self._made[1]

    def train_stream(self, row_format: RowFormat) -> VisitStream:
        """Return the visits in their order."""
        return VisitStream(len(self.visits(row_format).ids), *self.order, seed=row_format.seed)


class VisitDataModule(PackedDataModule):
    """Padded batches of one visit each, resumable and the same on any number of processes.

    An epoch is one pass over the items: `trainer.max_epochs` is the number of passes. A batch holds
    the keys of `visits.VisitCollate`; with several processes, its documents are shared out among
    them. A checkpoint may go on with another number of processes.

    Args:
        part: What is taught.
        eval_batch_size: Validation rows per process and batch.
        **kwargs: Further settings of `PackedDataModule`; `context_length` bounds one document.
    """

    def __init__(
        self,
        part: VisitedPart[Any],
        *,
        eval_batch_size: int = 64,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [part],
            [1.0],
            batch_size=1,  # one visit, whatever its number of rows
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
            # Each process reads every visit and takes its own documents of it.
            shard=None,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )
