"""Batches of a callback's own datamodule, beside those of the run."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch.distributed.checkpoint.stateful import Stateful

from triptych.callbacks.remember.language_model import language_model_of, tokenizer_of
from triptych.callbacks.trainer_parts import datamodule_of
from triptych.datamodules.batches.packed_datamodule import PackedDataModule
from triptych.protocols import HasContextLength

Batch = dict[str, Any]


class ReplayedBatches:
    """An endless sequence of training batches that can be resumed from a checkpoint.

    `setup` prepares the datamodule, which reads with the run's tokenizer and repeats its data. Step
    n of W processes reads batches n W ... n W + W - 1, one on each process.

    Args:
        data: The datamodule.
        who: Name of the callback, for messages.
    """

    def __init__(self, data: LightningDataModule, who: str) -> None:
        self.data = data
        self._who = who
        self._loader: Any = None  # resumable
        self._iterator: Iterator[Batch] | None = None
        self._trainer: Trainer | None = None
        # After the last optimizer step: a killed process loses later batches.
        self._position: dict[str, Any] | None = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the loader; a collective.

        Raises:
            ValueError: if rows are longer than the model's context, or the loader cannot be
                resumed.
        """
        longest = language_model_of(pl_module, self._who).config.max_position_embeddings
        length = self.data.context_length if isinstance(self.data, HasContextLength) else 0
        if length > longest:
            raise ValueError(
                f"{self._who}.data has rows of {length} tokens, but the model has {longest} "
                "positions: lower the context_length of that data"
            )
        if isinstance(self.data, PackedDataModule):
            self.data.tokenizer = tokenizer_of(datamodule_of(trainer), self._who)
        if trainer.local_rank == 0:
            self.data.prepare_data()
        trainer.strategy.barrier(self._who)
        self.data.setup("fit")
        self._trainer, self._iterator = trainer, None
        self._loader = self.data.train_dataloader()
        if not isinstance(self._loader, Stateful):
            raise ValueError(
                f"{self._who}.data: the training loader of {type(self.data).__name__} has no "
                "state_dict, so the run could not be resumed: use one of datamodules/, such as "
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
        """Read the next batch on the CPU, the same one on all processes."""
        for _ in range(2):
            if self._iterator is None:
                self._iterator = iter(self._loader)
            batch: Batch | None = next(self._iterator, None)
            if batch is not None:
                return batch
            self._iterator = None  # a pass has ended
        raise ValueError(f"{self._who}.data: {type(self.data).__name__} has no training batches")

    def note_step(self) -> None:
        """Keep the position if an optimizer step was taken; call after each batch."""
        assert self._trainer is not None
        if self._trainer.global_step != self._step:
            self._step = self._trainer.global_step
            self._position = self._loader.state_dict()

    def state_dict(self) -> dict[str, Any] | None:
        """Return the position after the last step; None before `setup`."""
        return self._position

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore the position; call after `setup`."""
        self._loader.load_state_dict(state)
        self._position, self._iterator = state, None
