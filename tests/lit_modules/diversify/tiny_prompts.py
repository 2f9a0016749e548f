"""Prompts, rewards and a policy that is a table: policy optimisation in milliseconds."""

from typing import Any

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch.utils.data import DataLoader

from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.diversify.categorical_policy import CategoricalPolicy
from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.answer_in_set import AnswerInSet
from triptych.objectives.rewards.base import Reward, Scores, TextReward

ANSWERS = ("1", "2", "x")
REFERENCE = (0.55, 0.25, 0.2)


class NamedLoader(DataLoader):
    name = "held_out"


class TinyPrompts(LightningDataModule):
    """`num_prompts` prompts with the right answers 1 and 2, and two that are held out."""

    def __init__(self, num_prompts: int = 4, batch_size: int = 2) -> None:
        super().__init__()
        self.num_prompts, self.batch_size = num_prompts, batch_size

    def rows(self, number: int, kind: str) -> list[dict[str, Any]]:
        return [
            {"prompt": f"{kind} {i}", "answers": ["1", "2"], "category": "one"}
            for i in range(number)
        ]

    def train_dataloader(self) -> DataLoader:
        rows = self.rows(self.num_prompts, "train")
        return DataLoader(rows, self.batch_size, collate_fn=list)

    def val_dataloader(self) -> list[DataLoader]:
        return [NamedLoader(self.rows(2, "held out"), 2, collate_fn=list)]


class Fails(TextReward):
    """1 for an answer of 1 or 2, nothing for x: it raises."""

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        if text == "x":
            raise RuntimeError("x is no number")
        return 1.0


class TooShort(Reward):
    """One value too few."""

    def score(self, rollout: Rollout) -> Scores:
        return Scores(torch.zeros(len(rollout) - 1))


def table_policy() -> CategoricalPolicy:
    return CategoricalPolicy(ANSWERS, [REFERENCE])


def module(**settings: Any) -> PolicyOptimization:
    defaults = {
        "vocab_size": None,
        "reward": AnswerInSet(),
        "policy": table_policy(),
        "num_samples": 8,
        "learning_rate": 0.1,
        "eval_samples": 16,
    }
    return PolicyOptimization(**(defaults | settings))


def trainer(folder: Any, *callbacks: Any, **settings: Any) -> Trainer:
    defaults = {
        "accelerator": "cpu",
        "devices": 1,
        "max_steps": 4,
        "max_epochs": -1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
    }
    return Trainer(default_root_dir=folder, callbacks=list(callbacks), **(defaults | settings))
