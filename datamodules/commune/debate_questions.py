"""Batches of a debate task's questions, by number, reshuffled in each epoch."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import PreTrainedTokenizerBase

from triptych.datamodules.batches.resumable_loader import ResumableLoader, Shard
from triptych.datamodules.commune.debate_task import DebateTask, Question, Split
from triptych.datamodules.commune.question_stream import ShuffledRows

# Shapes: B batch


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

    def state_dict(self) -> dict[str, Any]:
        """Return what the order of questions depends on, for the checkpoint."""
        return {"fingerprint": self.fingerprint(), "seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse to train on with other data; a checkpoint may be validated on any.

        Raises:
            ValueError: if questions or their order differ from those of the checkpoint.
        """
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        if fits and state_dict != self.state_dict():
            path = getattr(self.trainer, "ckpt_path", None)
            raise ValueError(
                f"the checkpoint {path or ''} was trained on other data than this run's: on other "
                "questions, or in another order, so it cannot continue where it stopped. Use the "
                "data settings (data.init_args) of the checkpoint's config.yaml, or start a new "
                "run from the exported model"
            )

    def train_dataloader(self) -> ResumableLoader:
        """Return shuffled batches; drop an incomplete last batch unless it is the only one."""
        trainer = self.trainer
        shard = Shard(trainer.global_rank, trainer.world_size) if trainer else Shard()
        num_rows = len(self.train_questions)
        batch_size = min(self.batch_size, max(1, num_rows // shard.world_size))
        stream = ShuffledRows(num_rows, self.seed, batch_size * shard.world_size)
        return ResumableLoader(
            stream,
            self.train_batch,
            batch_size=batch_size,
            rows_per_epoch=stream.num_rows(),
            shard=shard,
            trainer=trainer,
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
