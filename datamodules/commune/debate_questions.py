"""Questions of a debate as batches: their numbers, shuffled anew in each epoch."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from transformers import PreTrainedTokenizerBase

from triptych.datamodules.commune.debate_task import DebateTask, Question

# Shapes: B batch


class ShuffledRows(Sampler[int]):
    """Numbers of rows in an order of each epoch, of which every process takes its part.

    All processes get equally many; what is left over waits for another epoch.

    Args:
        num_rows: Rows in all.
        seed: Of the orders.
        rank: This process.
        world_size: Processes.
    """

    def __init__(self, num_rows: int, seed: int, rank: int = 0, world_size: int = 1) -> None:
        self.num_rows, self.seed = num_rows, seed
        self.rank, self.world_size = rank, world_size
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; Lightning calls it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows // self.world_size

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(self.num_rows, generator=generator)
        return iter(order[self.rank :: self.world_size][: len(self)].tolist())


class DebateQuestions(LightningDataModule):
    """Questions to train on and held-out ones; a batch holds their numbers, `rows`.

    Args:
        task: What agents are asked.
        batch_size: Questions per process and step.
        eval_batch_size: The same in validation; null: as `batch_size`.
        seed: Of the order.

    Raises:
        ValueError: on batches without a question.
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
        """Of agents that are trained on the task from scratch."""
        return self.task.tokenizer

    @property
    def vocab_size(self) -> int | None:
        """Tokens of that tokenizer."""
        return None if self.tokenizer is None else len(self.tokenizer)

    @cached_property
    def train_questions(self) -> list[Question]:
        """Questions to train on."""
        return self.task.questions("train")

    @cached_property
    def val_questions(self) -> list[Question]:
        """Held-out questions."""
        return self.task.questions("val")

    def fingerprint(self) -> str:
        """Of what is trained on."""
        return self.task.fingerprint("train")

    def train_dataloader(self) -> DataLoader[Any]:
        """Shuffled batches; a last one that is not full is left out, unless it is the only one."""
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
        """Held-out questions in their order; every process its part."""
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
        """A batch of training questions."""
        return {"rows": torch.tensor(rows)}

    def val_batch(self, rows: Sequence[int]) -> dict[str, Tensor]:
        """A batch of held-out questions."""
        return {"rows": torch.tensor(rows)}
