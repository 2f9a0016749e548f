"""What tests let the process with the pretended GPU do and report (test_pretended_gpu.py)."""

import io
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from tests.pretended_gpu.device import DEVICE, WAITS, MixedDevicesError


def mixed_devices() -> dict[str, bool]:
    """Return whether each operation on tensors of two devices is refused."""
    on_gpu, on_cpu = torch.ones(2, device="cuda"), torch.ones(2)
    ids = torch.tensor([0, 1], device="cuda")
    generator = torch.Generator("cpu")
    operations: dict[str, Callable[[], Any]] = {
        "sum": lambda: on_gpu + on_cpu,
        "product": lambda: on_gpu.unsqueeze(0) @ on_cpu.unsqueeze(1),
        "cat": lambda: torch.cat([on_gpu, on_cpu]),
        "linear": lambda: nn.Linear(2, 2)(on_gpu),
        "cpu indexed by cuda": lambda: on_cpu[ids],
        "cpu values put into cuda": lambda: on_gpu.__setitem__(ids, on_cpu),
        "generator": lambda: torch.rand(2, device="cuda", generator=generator),
        "number": lambda: on_gpu * torch.tensor(2.0),
        "own": lambda: on_gpu + on_cpu.to("cuda"),
    }
    refused = {}
    for name, operation in operations.items():
        try:
            operation()
            refused[name] = False
        except MixedDevicesError:
            refused[name] = True
    return refused


def number_of_waits() -> dict[str, int]:
    """Return how often each operation waits."""
    x = torch.arange(4.0, device="cuda")
    mask = x > 1
    counts = torch.tensor([1, 2], device="cuda")
    operations: dict[str, Callable[[], Any]] = {
        "arithmetic": lambda: (x * 2 + 1).sum(),
        "item": lambda: x.sum().item(),
        "float": lambda: float(x.sum()),
        "if": lambda: bool(mask.any()),
        "tolist": lambda: x.tolist(),
        "mask": lambda: x[mask],
        "nonzero": lambda: mask.nonzero(),
        "to the host": lambda: x.cpu(),
        "to the host at once": lambda: x.to("cpu", non_blocking=True),
        "to the device": lambda: torch.ones(2).to("cuda"),
        "to the device at once": lambda: torch.ones(2).to("cuda", non_blocking=True),
        "from a list": lambda: torch.tensor([1, 2], device="cuda"),
        "bincount": lambda: counts.bincount(minlength=4),
        "repeat": lambda: torch.repeat_interleave(counts),
        "repeat with size": lambda: torch.repeat_interleave(counts, output_size=3),
        "index by a list": lambda: x[[0, 1]],
        "equal": lambda: torch.equal(x, x),
    }
    found = {}
    for name, operation in operations.items():
        WAITS.start()
        operation()
        found[name] = sum(WAITS.stop().values())
    return found


def place_of_a_wait() -> list[Any]:
    """Return place and owner of waits in a forward and in a backward pass."""
    from triptych.models.remember.values.value_table import ValueTable
    from triptych.objectives.remember.slot_scores import top_slots

    WAITS.start()
    top_slots(torch.rand(8, device="cuda"), None)
    found = WAITS.stop()
    table = ValueTable(8, 2).to("cuda")
    ids = torch.zeros(1, 1, dtype=torch.int64, device="cuda")
    table(ids, torch.ones(1, 1, device="cuda")).sum().backward()
    assert table.weight.grad is not None
    on_gpu = table.weight.grad.device == DEVICE
    return [[one.place, one.is_ours] for one in found] + [["gradient", on_gpu]]


def saved_and_loaded() -> dict[str, str]:
    """Return the devices of a saved tensor after `torch.load`, and of a module that moved."""
    file = io.BytesIO()
    torch.save({"x": torch.arange(3.0, device="cuda")}, file)
    devices = {}
    ways: dict[str, Any] = {"cpu": "cpu", "function": lambda storage, _: storage, "null": None}
    for name, where in ways.items():
        file.seek(0)
        loaded = torch.load(file, map_location=where, weights_only=True)["x"]
        assert loaded.tolist() == [0, 1, 2]
        devices[name] = str(loaded.device)
    module = nn.Linear(2, 2)
    weight = module.weight
    devices["module"] = str(module.to("cuda").weight.device)
    assert module.weight is weight
    module.cpu()
    assert module.weight is weight
    devices["module back"] = str(weight.device)
    return devices


def autocast() -> list[str]:
    """Return the dtypes of a product and of a logarithm under CUDA's autocast."""
    x = torch.ones(2, 2, device="cuda")
    with torch.autocast("cuda", torch.bfloat16):
        return [str((x @ x).dtype), str((x @ x).log().dtype)]
