"""Batches of a debate task's questions, by number, reshuffled in each epoch."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from triptych.datamodules.commune.debate_task import DebateTask, Question, Split

# Shapes: B batch


class ShuffledRows(Sampler[int]):
    """Row numbers in a new order for each epoch, split over the processes.

    All processes get the same number of rows; the remainder is left out of the epoch.

    Args:
        num_rows: Number of rows.
        seed: Seed of the orders.
        rank: Number of this process.
        world_size: Number of processes.
    """

    def __init__(self, num_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of an epoch; called by Lightning."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        return iter(order[self.rank :: self.world_size][: len(self)].tolist())


class DebateQuestions(LightningDataModule):
    """Training and held-out questions of a task; a batch holds their numbers, `rows`.

    Args:
        task: The debate task.
        batch_size: Questions per process and step.
        eval_batch_size: Questions per process and step in validation; null: as `batch_size`.
        seed: Seed of the order.

    Raises:
        ValueError: if a batch size is below 1; when questions are read, if there are none.
    """

    def __init__(
        self,
        task: DebateTask,
        batch_size: int = 256,
        eval_batch_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (("batch_size", batch_size), ("eval_batch_size", eval_batch_size)):
            if value is not None and value < 1:
                raise ValueError(f"data.init_args.{name} is {value}: set it to at least 1")
        self.task = task
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size or batch_size
        self.seed = seed

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Tokenizer for agents that are trained from scratch; None if the task has none."""
        return self.task.tokenizer

    @property
    def vocab_size(self) -> int | None:
        """Number of tokens of the tokenizer."""
        return None if self.tokenizer is None else len(self.tokenizer)

    @cached_property
    def train_questions(self) -> list[Question]:
        """Training questions."""
        return self._questions("train")

    @cached_property
    def val_questions(self) -> list[Question]:
        """Held-out questions."""
        return self._questions("val")

    def _questions(self, split: Split) -> list[Question]:
        questions = self.task.questions(split)
        if not questions:
            raise ValueError(
                f"{type(self.task).__name__}.questions({split!r}) is empty: a task needs at least "
                "one question to train on and one to validate on"
            )
        return questions

    def fingerprint(self) -> str:
        """Hash of the training questions."""
        return self.task.fingerprint("train")

    def train_dataloader(self) -> DataLoader[Any]:
        """Return shuffled batches; drop an incomplete last batch unless it is the only one."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        num_rows = len(self.train_questions)
        return DataLoader(
            range(num_rows),  # type: ignore[arg-type]  # any sequence will do, torch's stubs want a Dataset
            self.batch_size,
            sampler=ShuffledRows(num_rows, self.seed, rank, world),
            drop_last=num_rows // world >= self.batch_size,
            collate_fn=self.train_batch,
            generator=torch.Generator().manual_seed(0),  # leaves the global generator alone
        )

    def val_dataloader(self) -> DataLoader[Any]:
        """Return held-out questions in order, split over the processes."""
        trainer = self.trainer
        rank, world = (trainer.global_rank, trainer.world_size) if trainer else (0, 1)
        rows = list(range(len(self.val_questions)))[rank::world]
        return DataLoader(
            rows,  # type: ignore[arg-type]  # any sequence will do, torch's stubs want a Dataset
            self.eval_batch_size,
            collate_fn=self.val_batch,
            generator=torch.Generator().manual_seed(0),
        )

    def train_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch of training questions."""
        return {"rows": torch.tensor(rows)}

    def val_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """Return a batch of held-out questions."""
        return {"rows": torch.tensor(rows)}
