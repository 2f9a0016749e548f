"""Shards a module's language model where the trainer's strategy asks for it."""

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import FSDPModule
from transformers import PreTrainedModel

from triptych.metrics.sharded_strategies import shards
from triptych.models.sharding import shard_language_model


def shard_for_trainer(module: LightningModule, model: PreTrainedModel) -> None:
    """Shard a model over the processes of the run; for `configure_model`.

    Nothing happens under strategies that do not shard, or if the model is sharded already.

    Args:
        module: The module, with its trainer.
        model: The module's language model.

    Raises:
        ValueError: if the strategy shards in another way than FSDP2 alone, or the model cannot be
            sharded.
    """
    strategy = module.trainer.strategy
    if not shards(module.trainer) or isinstance(model, FSDPModule):
        return
    name = type(strategy).__name__
    if not isinstance(strategy, ModelParallelStrategy):
        raise ValueError(
            f"trainer.strategy is {name}, which shards no value table and clips by the norms of "
            "single shards: use configs/hardware/fsdp2.yaml "
            "(triptych.callbacks.sharded_strategy.ShardedStrategy)"
        )
    mesh = strategy.device_mesh
    if mesh["tensor_parallel"].size() != 1:
        raise ValueError(
            f"trainer.strategy is {name} with tensor_parallel_size "
            f"{mesh['tensor_parallel'].size()}, which cuts matrices: use "
            "configs/hardware/fsdp2.yaml (triptych.callbacks.sharded_strategy.ShardedStrategy)"
        )
    mixed = module.trainer.precision == "bf16-mixed"
    shard_language_model(model, mesh["data_parallel"], torch.bfloat16 if mixed else None)
