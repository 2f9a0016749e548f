"""Gradient checkpointing of decoder blocks, in eval mode and with a cache too.

The switch of transformers acts in training mode only, and drops the cache. Policies run in eval
mode, and their completions take the keys and values of a shared prompt from a cache.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import DynamicLayer
from transformers.modeling_layers import GradientCheckpointingLayer


def checkpoint_blocks(model: PreTrainedModel) -> None:
    """Keep only the inputs of decoder blocks for the backward pass, which computes them again.

    Activations then take memory for one block at a time, for a third more arithmetic. Gradients
    are the same. Calls without gradients run as before. The method acts on the model in place; a
    second call changes nothing, and copies of the model have it too.

    Args:
        model: A transformers model.

    Raises:
        ValueError: if the model has no blocks that transformers could checkpoint either.
    """
    blocks = [part for part in model.modules() if isinstance(part, GradientCheckpointingLayer)]
    if not blocks:
        raise ValueError(
            f"{type(model).__name__} has no decoder blocks for gradient checkpointing: set "
            "gradient_checkpointing to false"
        )
    for block in blocks:
        if not isinstance(block.__dict__.get("forward"), CheckpointedForward):
            block.forward = CheckpointedForward(block)


class CheckpointedForward:
    """The `forward` of one block, whose activations the backward pass computes again.

    Args:
        block: The block. Deep copies of the block get a copy of this object.
    """

    def __init__(self, block: nn.Module) -> None:
        self.block = block

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block."""
        forward: Callable[..., Any] = partial(type(self.block).forward, self.block)
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        caches = [one for one in (*args, *kwargs.values()) if isinstance(one, Cache)]
        restored = _CacheState(caches[0]) if caches else nullcontext()
        contexts: tuple[AbstractContextManager[Any], AbstractContextManager[Any]] = (
            nullcontext(),
            restored,
        )
        return checkpoint(
            forward,
            *args,
            use_reentrant=False,
            preserve_rng_state=self.block.training,  # nothing is random in eval mode
            context_fn=lambda: contexts,
            **kwargs,
        )


class _CacheState:
    """The state of a cache before a block ran; inside the context the cache is in it again.

    Without it the second run of the block would append its keys and values a second time. Layers
    of the cache must replace their tensors and not write into them, as `DynamicLayer` does.

    Raises:
        ValueError: if the cache has other layers.
    """

    def __init__(self, cache: Cache) -> None:
        self.cache = cache
        others = [type(layer) for layer in cache.layers if not isinstance(layer, DynamicLayer)]
        if others:
            raise ValueError(
                f"gradient checkpointing needs a DynamicCache, but got one of {others[0].__name__}"
            )
        self._before = self._state()
        self._after: list[tuple[Any, dict[str, Any]]] = []

    def _state(self) -> list[tuple[Any, dict[str, Any]]]:
        return [(layer, dict(vars(layer))) for layer in self.cache.layers]

    def __enter__(self) -> None:
        self._after = self._state()
        self._restore(self._before)

    def __exit__(self, *_: object) -> None:
        self._restore(self._after)
        self._after = []

    def _restore(self, state: list[tuple[Any, dict[str, Any]]]) -> None:
        self.cache.layers[:] = [layer for layer, _ in state]
        for layer, values in state:
            vars(layer).clear()
            vars(layer).update(values)
