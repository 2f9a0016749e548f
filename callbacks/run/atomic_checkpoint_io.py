"""Checkpoint files that survive a kill during the write."""

import errno
import os
import shutil
import zipfile
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
        path = Path(path)
        earlier = path.is_file()
        try:
            with atomic_file(path) as partial:
                torch.save(checkpoint, partial)
        except (OSError, RuntimeError) as error:
            cause = _cause_of_disk(error, path)
            if cause is None:
                raise
            kept = (
                f"{path} is as before: resume from it with --ckpt_path"
                if earlier
                else "there is no earlier checkpoint of this name"
            )
            raise OSError(
                f"the checkpoint {path} could not be written ({cause}): free some space, or give "
                f"another --run_dir; {kept}"
            ) from error

    @override
    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint.

        Raises:
            OSError: if there is no such file.
            ValueError: if the file is damaged, or cannot be loaded as a checkpoint.
        """
        try:
            _refuse_damaged(Path(path))
            return super().load_checkpoint(path, *args, **kwargs)
        except (FileNotFoundError, PermissionError, MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # the type depends on the bytes that torch finds
            cause = str(error).partition("\n")[0][:200]
            raise ValueError(
                f"{path} cannot be loaded as a checkpoint ({type(error).__name__}: {cause}): give "
                "the checkpoints/last.ckpt or best.ckpt of a run"
            ) from error


def _refuse_damaged(path: Path) -> None:
    """Compare a checkpoint with its checksums, which torch writes and does not read.

    Raises:
        ValueError: if a part of the file is damaged.
    """
    if path.is_file() and zipfile.is_zipfile(path):  # not a folder of shards, nor an object store's
        with zipfile.ZipFile(path) as parts:
            broken = parts.testzip()
        if broken is not None:
            raise ValueError(f"it is damaged: the checksum of its part {broken} does not match")


def _cause_of_disk(error: Exception, path: Path) -> str | None:
    """Say what is wrong with the disk, None if the error is of another kind.

    torch's writer of archives hides the error of the system in a message about positions.
    """
    if isinstance(error, OSError):
        return os.strerror(error.errno) if error.errno else str(error)
    text = str(error)
    if "inline_container" not in text and "PytorchStreamWriter" not in text:
        return None
    free = shutil.disk_usage(path.parent).free
    full = f"{os.strerror(errno.ENOSPC)} or a limit for files, {free / 2**20:,.0f} MiB free"
    return f"{full}; {text.partition(chr(10))[0][:120]}"
