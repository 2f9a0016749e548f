"""Seconds of the parts of a step."""

import time

import torch

from tests.pretended_gpu.cuda import PretendedEvent
from triptych.lit_modules.diversify.step_clock import StepClock


def step(clock: StepClock, device: str, seconds: float) -> dict[str, float]:
    clock.begin_step(torch.device(device))
    for _ in range(2):
        with clock("reward"):
            time.sleep(seconds)
    return clock.end_step()


def test_parts_of_one_name_are_added():
    found = step(StepClock(), "cpu", 0.02)
    assert 0.04 <= found["reward"] <= found["step"]
    assert set(found) == {"reward", "step"}


def test_a_device_is_measured_by_its_events_one_step_later(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "Event", PretendedEvent)
    clock = StepClock()
    assert step(clock, "cuda", 0.02) == {}
    found = step(clock, "cuda", 0.0)
    assert found["reward"] >= 0.04
    assert found["step"] >= found["reward"]
    # A device that has not got there yet is not waited for.
    monkeypatch.setattr(PretendedEvent, "query", lambda self: False)
    assert step(clock, "cuda", 0.0) == {}
