"""Members of Lightning's trainer that it sets but does not declare."""

from typing import Any

from lightning.pytorch import Callback, LightningDataModule, Trainer
from lightning.pytorch.utilities.rank_zero import rank_zero_only

from triptych.protocols import HasFingerprint, LeavesRowsOut


def datamodule_of(trainer: Trainer) -> LightningDataModule | None:
    """Return the datamodule that the trainer runs with."""
    undeclared: Any = trainer
    data: LightningDataModule | None = undeclared.datamodule
    return data


def data_fingerprint(trainer: Trainer) -> str | None:
    """Return the fingerprint of the data; None if they have none, or are gone or broken.

    The run has reported data that are gone already.
    """
    data = datamodule_of(trainer)
    try:
        return data.fingerprint() if isinstance(data, HasFingerprint) else None
    except (OSError, ValueError):
        return None


def rows_left_out(trainer: Trainer) -> dict[str, int] | None:
    """Return how many rows of the data each filter left out; None as of `data_fingerprint`."""
    data = datamodule_of(trainer)
    try:
        return dict(data.left_out) if isinstance(data, LeavesRowsOut) else None
    except (OSError, ValueError):
        return None


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """Return the trainer's callbacks."""
    undeclared: Any = trainer
    callbacks: list[Callback] = undeclared.callbacks
    return callbacks


def num_dry_run_batches(trainer: Trainer) -> int:
    """Return the number of batches of a dry run (`fast_dev_run`); 0 for a full run."""
    undeclared: Any = trainer
    return int(undeclared.fast_dev_run)


def is_first_rank() -> bool:
    """Tell whether this is the process that prints."""
    undeclared: Any = rank_zero_only
    return int(undeclared.rank) == 0
