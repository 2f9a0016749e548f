"""Steps of a policy that is asked for nothing: each batch is one empty prompt."""

from collections.abc import Iterator
from typing import Any

from lightning.pytorch import LightningDataModule


class Unprompted(LightningDataModule):
    """Batches of empty prompts, for policies without a condition, such as those of molecules.

    Args:
        steps_per_epoch: Batches after which an epoch ends.
        prompts_per_step: Prompts of a batch: as many groups of `num_samples` completions.

    Raises:
        ValueError: if a number is below 1.
    """

    def __init__(self, steps_per_epoch: int = 100, prompts_per_step: int = 1) -> None:
        super().__init__()
        for name, value in (
            ("steps_per_epoch", steps_per_epoch),
            ("prompts_per_step", prompts_per_step),
        ):
            if value < 1:
                raise ValueError(f"data.init_args.{name} is {value}: set it to at least 1")
        self.steps_per_epoch = steps_per_epoch
        self.prompts_per_step = prompts_per_step

    def train_dataloader(self) -> "EmptyPrompts":
        """Return the training batches."""
        return EmptyPrompts(self.steps_per_epoch, self.prompts_per_step)

    def val_dataloader(self) -> list[Any]:
        """Return nothing: looking at a policy of molecules would cost oracle calls."""
        return []


class EmptyPrompts:
    """An epoch of batches that are all the same; it goes on where a checkpoint left it.

    Args:
        num_batches: Batches of an epoch.
        num_prompts: Prompts of a batch.
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
        """How many batches of the epoch were given."""
        return {"done": self._done}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on there."""
        self._done = state["done"]
