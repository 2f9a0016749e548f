"""A callback that sends its own process a real signal in the middle of a hook."""

import os
import signal
import time
from typing import Any

from lightning.pytorch import Callback

# "hook step signal"; a run that is resumed does not have it.
VARIABLE = "TRIPTYCH_TEST_SIGNAL"


class SignalAt(Callback):
    """Sends the signal of the environment once, at a hook of a step."""

    def __init__(self) -> None:
        self._is_sent = VARIABLE not in os.environ

    def _at(self, hook: str, trainer: Any) -> None:
        if self._is_sent:
            return
        name, step, signals = os.environ[VARIABLE].split()
        if name == hook and trainer.global_step == int(step):
            self._is_sent = True
            for number, signum in enumerate(signals.split(",")):
                time.sleep(0.5 * number)  # nobody types faster
                os.kill(os.getpid(), signal.Signals[signum])

    def on_train_start(self, trainer, *_):
        self._at("on_train_start", trainer)

    def on_before_backward(self, trainer, *_):
        self._at("on_before_backward", trainer)

    def on_train_batch_end(self, trainer, *_):
        self._at("on_train_batch_end", trainer)

    def on_validation_batch_end(self, trainer, *_):
        self._at("on_validation_batch_end", trainer)

    def on_validation_epoch_end(self, trainer, *_):
        self._at("on_validation_epoch_end", trainer)

    def on_validation_end(self, trainer, *_):
        self._at("on_validation_end", trainer)

    def on_fit_end(self, trainer, *_):
        self._at("on_fit_end", trainer)
