"""Batches from a datamodule of a callback's own, beside those of the run."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from triptych.datamodules.batches.packed_datamodule import PackedDataModule

Batch = dict[str, Any]


class ReplayedBatches:
    """An endless sequence of training batches that a checkpoint can go on with.

    The datamodule is set up here, reads with the run's tokenizer, and passes over its data again
    and again. Of several processes each takes its turn: step n of W processes reads batches
    n W ... n W + W - 1, one each.

    Args:
        data: Where they come from.
        who: The callback, for messages.
    """

    def __init__(self, data: LightningDataModule, who: str) -> None:
        self.data = data
        self._who = who
        self._loader: Any = None
        self._iterator: Iterator[Batch] | None = None
        self._trainer: Trainer | None = None
        # Where the last optimizer step left off: later batches are lost with the process.
        self._position: dict[str, Any] | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the loader; a collective.

        Raises:
            ValueError: if rows are longer than the model's context, or the loader cannot tell where
                it stands.
        """
        longest = pl_module.model.config.max_position_embeddings
        length = getattr(self.data, "context_length", 0)
        if length > longest:
            raise ValueError(
                f"{self._who}.data has rows of {length} tokens, but the model has {longest} "
                "positions: lower the context_length of that data"
            )
        if isinstance(self.data, PackedDataModule):
            self.data.tokenizer = trainer.datamodule.tokenizer
        if trainer.local_rank == 0:
            self.data.prepare_data()
        trainer.strategy.barrier(self._who)
        self.data.setup("fit")
        self._trainer, self._iterator = trainer, None
        self._loader = self.data.train_dataloader()
        if not hasattr(self._loader, "state_dict"):
            raise ValueError(
                f"{self._who}.data: the training loader of {type(self.data).__name__} cannot say "
                "where it stands (it has no state_dict), so that the run could not be resumed: use "
                "one of datamodules/, such as "
                "triptych.datamodules.remember.text.text_and_facts.TextAndFacts"
            )
        self._position = self._loader.state_dict()

    def next(self) -> Batch:
        """Read this process's next batch, on its device."""
        assert self._trainer is not None
        drawn = [self.next_of_all() for _ in range(self._trainer.world_size)]
        own: Batch = self._trainer.strategy.batch_to_device(drawn[self._trainer.global_rank])
        return own

    def next_of_all(self) -> Batch:
        """Read the next batch in the order of one process, the same on all; on the CPU."""
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._loader)
            batch = next(self._iterator, None)
            if batch is not None:
                return batch
            self._iterator = None  # a pass has ended, and the next begins
        raise ValueError(f"{self._who}.data: {type(self.data).__name__} has no training batches")

    def note_step(self) -> None:
        """Call after each batch: once an optimizer step was taken, its batches are done with."""
        assert self._trainer is not None
        if self._trainer.global_step != self._step:
            self._step = self._trainer.global_step
            self._position = self._loader.state_dict()

    def state_dict(self) -> dict[str, Any] | None:
        """Where to go on, None before `setup`."""
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on there; after `setup`."""
        self._loader.load_state_dict(state)
        self._position, self._iterator = state, None
