"""Running a model in the middle of training, and leaving no trace of it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import nn

from triptych.models.remember.memory_blocks import memory_layers


@contextmanager
def undisturbed(module: nn.Module) -> Iterator[None]:
    """Put a module into eval mode, without gradients, and restore on exit all that training sees.

    Restored are the mode of every submodule, the generators' state, and what memory layers have
    recorded. Without gradients, value tables keep no reads of their own; those of micro-batches
    that still wait for their optimizer step stay.

    Args:
        module: What is run, with all that belongs to it.
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
