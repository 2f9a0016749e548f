"""Seconds of the parts of a training step."""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


class StepClock:
    """Measures named parts of a step without making the host wait for the device.

    On CUDA the times are those of the device, between events, and known one step later.
    """

    def __init__(self) -> None:
        self._spans: list[tuple[str, float, float]] = []
        self._events: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._previous: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._on_cuda = False
        self._whole: AbstractContextManager[None] = nullcontext()

    def begin_step(self, device: torch.device) -> None:
        """Start a step.

        Args:
            device: Where its parts are computed.
        """
        self._on_cuda = device.type == "cuda" and torch.cuda.is_available()
        self._spans, self._events = [], []
        self._whole = self("step")
        self._whole.__enter__()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Measure what happens inside the context as a part of the step."""
        if self._on_cuda:
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            yield
            end.record()
            self._events.append((name, start, end))
        else:
            began = time.perf_counter()
            yield
            self._spans.append((name, began, time.perf_counter()))

    def end_step(self) -> dict[str, float]:
        """Return the seconds of each part of the last step whose times are known, by name.

        Parts of one name are added, and `step` is the whole. On CUDA it is empty after the first
        step.
        """
        self._whole.__exit__(None, None, None)
        seconds: dict[str, float] = {}
        for name, began, ended in self._spans:
            seconds[name] = seconds.get(name, 0.0) + ended - began
        # Sampling in between has waited for the device, so the events have passed.
        known = self._previous if all(end.query() for *_, end in self._previous) else []
        for name, start, end in known:
            seconds[name] = seconds.get(name, 0.0) + start.elapsed_time(end) / 1000
        self._previous = self._events
        return seconds
