"""Strategies that shard parameters over processes, and the refusal of what needs whole ones."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning.pytorch import Trainer


def shards(trainer: "Trainer") -> bool:
    """Tell whether the run's strategy shards parameters."""
    # Here, since metrics are imported without Lightning.
    from lightning.pytorch.strategies import ModelParallelStrategy

    return is_unsupported(trainer) or isinstance(trainer.strategy, ModelParallelStrategy)


def is_unsupported(trainer: "Trainer") -> bool:
    """Tell whether it shards without `triptych.models.sharding`, which no module supports."""
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

    return isinstance(trainer.strategy, FSDPStrategy | DeepSpeedStrategy)


def refuse_sharded(trainer: "Trainer", needs: str) -> None:
    """Refuse a strategy that shards parameters.

    Args:
        trainer: The run's trainer.
        needs: Start of the message: the setting or class, and what it needs whole weights for.

    Raises:
        ValueError: if the strategy shards parameters.
    """
    if shards(trainer):
        raise ValueError(
            f"{needs}, but {type(trainer.strategy).__name__} shards them: set trainer.strategy to "
            "DDP (configs/hardware/ddp.yaml), or use one GPU (configs/hardware/gpu.yaml)"
        )
