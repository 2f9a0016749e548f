"""Running a model in the middle of training without side effects."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from triptych.models.remember.memory_blocks import memory_layers


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode without gradients, and restore the state of training on exit.

    The mode of every submodule, the state of the generators, and the records of memory layers are
    restored. Without gradients, value tables add no reads. Those of micro-batches that wait for
    their optimizer step stay.

    Args:
        module: The module, with everything that runs in it.
    """
    modes = [(child, child.training) for child in module.modules()]
    records = [(layer, layer.recording, layer.last_ids) for layer in memory_layers(module)]
    with isolate_rng(), torch.no_grad():
        try:
            module.eval()
            for layer, *_ in records:
                layer.recording = False
            yield
        finally:
            for child, training in modes:
                child.training = training
            for layer, recording, last_ids in records:
                layer.recording, layer.last_ids = recording, last_ids
