"""Counts the waits of one optimizer step of a run."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

from tests.pretended_gpu.device import WAITS
from tests.pretended_gpu.wait_counter import Wait


@contextmanager
def counted_step(step: int | None) -> Iterator[Counter[Wait]]:
    """Count the waits of one step of the runs within.

    Batches of the step are fetched, transferred, trained on and logged in it; validation and
    checkpoints are not.

    Args:
        step: Optimizer steps of the process before it; None: count nothing.

    Yields:
        The waits, once the step is over.
    """
    found: Counter[Wait] = Counter()
    advance = _TrainingEpochLoop.advance

    def counting(self: Any, *args: Any, **kwargs: Any) -> None:
        if self.global_step != step:
            advance(self, *args, **kwargs)
            return
        if not WAITS.counting:
            WAITS.start()
        advance(self, *args, **kwargs)
        if self.global_step > step:
            found.update(WAITS.stop())

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_TrainingEpochLoop, "advance", counting)
        yield found
    WAITS.stop()
