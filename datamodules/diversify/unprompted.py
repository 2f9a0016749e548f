"""Steps of a policy without a condition: each batch is empty prompts."""

from collections.abc import Iterator
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import LightningDataModule


class Unprompted(LightningDataModule):
    """Batches of empty prompts, for policies without a condition, such as those of molecules.

    Args:
        steps_per_epoch: Batches in an epoch.
        prompts_per_step: Prompts in a batch; each gets a group of `num_samples` completions.
    """

    def __init__(
        self, steps_per_epoch: PositiveInt = 100, prompts_per_step: PositiveInt = 1
    ) -> None:
        super().__init__()
        self.steps_per_epoch = steps_per_epoch
        self.prompts_per_step = prompts_per_step

    def train_dataloader(self) -> "EmptyPrompts":
        """Return the training batches."""
        return EmptyPrompts(self.steps_per_epoch, self.prompts_per_step)

    def val_dataloader(self) -> list[Any]:
        """Return nothing: a validation of molecules would cost oracle calls."""
        return []


class EmptyPrompts:
    """An epoch of identical batches, which resumes from a checkpoint.

    Args:
        num_batches: Batches in an epoch.
        num_prompts: Prompts in a batch.
    """

    def __init__(self, num_batches: int, num_prompts: int) -> None:
        self.num_batches, self.num_prompts = num_batches, num_prompts
        self._done = 0

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        while self._done < self.num_batches:
            self._done += 1
            yield [{} for _ in range(self.num_prompts)]
        self._done = 0

    def state_dict(self) -> dict[str, int]:
        """Return the number of batches of the epoch that were yielded."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue from a state."""
        self._done = state["done"]
