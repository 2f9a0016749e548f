"""Fully sharded data parallelism (FSDP2) for Lightning, with checkpoints that survive a kill."""

import atexit
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.collectives.torch_collective import default_pg_timeout
from lightning.pytorch.strategies import ModelParallelStrategy
from typing_extensions import override

from triptych.callbacks.atomic_file import atomic_folder, recover_folder


class ShardedStrategy(ModelParallelStrategy):
    """Shards parameters, gradients and optimizer state over all processes of the run.

    What is sharded is up to the module's `configure_model`; `triptych.models.sharding` does it for
    language models. Two things differ from Lightning's `ModelParallelStrategy`: every process is
    data-parallel, where Lightning's default takes the processes of a machine for tensor
    parallelism; and the folder of a checkpoint is replaced as a whole.

    Args:
        save_distributed_checkpoint: True: a checkpoint is a folder to which every process writes
            its shards; on several machines it needs a shared file system. Resuming with another
            number of processes is untested. False: one file, gathered in the memory of the first
            process.
        process_group_backend: `nccl` or `gloo`; null: that of the accelerator.
        timeout: Time after which a process that waits for others gives up.
    """

    def __init__(
        self,
        save_distributed_checkpoint: bool = True,
        process_group_backend: str | None = None,
        timeout: timedelta | None = default_pg_timeout,
    ) -> None:
        super().__init__(
            tensor_parallel_size=1,
            save_distributed_checkpoint=save_distributed_checkpoint,
            process_group_backend=process_group_backend,
            timeout=timeout,
        )

    @override
    def setup_environment(self) -> None:
        self._data_parallel_size = self.num_nodes * self.num_processes
        super().setup_environment()
        # Lightning does so for nccl alone. A process with open gloo groups may hang in its last
        # moments, after Python has ended.
        atexit.register(_leave_groups)

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        if not self._save_distributed_checkpoint:
            super().save_checkpoint(checkpoint, filepath, storage_options)
            return
        path = Path(self.broadcast(str(filepath)))
        with ExitStack() as stack:
            partial = path
            if self.is_global_zero:
                if path.is_file():  # of a run on one process, or of one that gathered
                    path.unlink()
                partial = stack.enter_context(atomic_folder(path))
            super().save_checkpoint(checkpoint, self.broadcast(str(partial)), storage_options)
            self.barrier("all shards are written")
        self.barrier("the checkpoint is in its place")

    @override
    def load_checkpoint(
        self, checkpoint_path: str | Path, weights_only: bool | None = None
    ) -> dict[str, Any]:
        if self.is_global_zero:
            recover_folder(Path(checkpoint_path))
        self.barrier("the checkpoint is in its place")
        return super().load_checkpoint(checkpoint_path, weights_only)


def _leave_groups() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
