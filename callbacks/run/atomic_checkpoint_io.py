"""Checkpoint files that survive a kill during the write."""

from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_file


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside its path, syncs it to disk, and renames it.

    Lightning stages checkpoints in the system's folder for temporary files. On another file system
    its last step is a copy over the old checkpoint, and ``kill -9`` during the copy loses both. It
    also holds a second copy of the checkpoint in memory.
    """

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        if "://" in str(path):  # object stores replace objects in one step
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        with atomic_file(Path(path)) as partial:
            torch.save(checkpoint, partial)

    @override
    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            OSError: if there is no such file.
            ValueError: if the file cannot be loaded as a checkpoint.
        """
        try:
            return super().load_checkpoint(path, *args, **kwargs)
        except (OSError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the type depends on the bytes that torch finds
            cause = str(error).partition("\n")[0][:200]
            raise ValueError(
                f"{path} cannot be loaded as a checkpoint ({type(error).__name__}: {cause}): give "
                "the checkpoints/last.ckpt or best.ckpt of a run"
            ) from error
