"""Where a run is killed: at a random moment, in any hook of training, or while it saves."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

KINDS = (
    "any moment",
    "a step",
    "start of a validation",
    "in a validation",
    "end of a validation",
    "while saving",
    "after the last step",
    "while reporting",
)
_HOOKS = {
    "a step": "on_before_optimizer_step",
    "start of a validation": "on_validation_start",
    "in a validation": "on_validation_batch_end",
    "end of a validation": "on_validation_end",
    "after the last step": "on_train_end",
    "while reporting": "on_fit_end",
}


@dataclass(frozen=True)
class KillPlan:
    """One ``kill -9``.

    Attributes:
        kind: One of `KINDS`.
        number: The so-manieth hook or write of its kind that is killed, from 1.
        seconds: Seconds after the start, at a random moment.
        after: Whether the hook's callbacks have run.
    """

    kind: str
    number: int
    seconds: float
    after: bool

    def install(self) -> None:
        """Plant the kill in this process, before the run."""
        if self.kind == "any moment":
            threading.Thread(target=self._kill_later, daemon=True).start()
        elif self.kind == "while saving":
            self._kill_in_write()
        else:
            self._kill_in_hook(_HOOKS[self.kind])

    def _kill_later(self) -> None:
        time.sleep(self.seconds)
        _kill()

    def _kill_in_write(self) -> None:
        sync, counter = os.fsync, _Counter(self.number)

        def fsync(descriptor: Any) -> None:
            if "checkpoints" in os.readlink(f"/proc/self/fd/{descriptor}") and counter.is_due():
                _kill()
            sync(descriptor)

        os.fsync = fsync  # type: ignore[assignment]  # the parameter has another name

    def _kill_in_hook(self, hook: str) -> None:
        from lightning.pytorch.trainer import call

        original: Callable[..., Any] = call._call_callback_hooks
        counter = _Counter(self.number)

        def hooks(trainer: Any, hook_name: str, *args: Any, **kwargs: Any) -> Any:
            due = hook_name == hook and counter.is_due()
            if due and not self.after:
                _kill()
            result = original(trainer, hook_name, *args, **kwargs)
            if due:
                _kill()
            return result

        call._call_callback_hooks = hooks


def random_plan(kind: str, chance: random.Random, seconds: float, hooks: int) -> KillPlan:
    """Choose where a run is killed.

    Args:
        kind: One of `KINDS`.
        chance: Random numbers of the case.
        seconds: Time that the whole run takes.
        hooks: Number of steps, from which the place among hooks is chosen.
    """
    most = {"a step": hooks, "while saving": 4, "in a validation": 4}.get(kind, 2)
    if kind in ("after the last step", "while reporting"):
        most = 1
    number = chance.randrange(1, most + 1)
    return KillPlan(kind, number, chance.random() * seconds, chance.random() < 0.5)


class _Counter:
    def __init__(self, number: int) -> None:
        self._left = number

    def is_due(self) -> bool:
        self._left -= 1
        return self._left == 0


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)  # the signal arrives in between
