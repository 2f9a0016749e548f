"""Checks of single operations."""

# Shapes: B bags, K reads a bag, S slots, D value width, H heads, N half keys, E half width

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from triptych.benchmarks.gpu_checks.check import Setting, Unavailable, largest_difference
from triptych.benchmarks.memory_layer_parts import bandwidth, breakdown, copy_bandwidth
from triptych.benchmarks.memory_layer_sides import LayerSides, LayerSizes
from triptych.models.remember.index.product_key_search import product_key_topk
from triptych.models.remember.values.value_table import ValueTable
from triptych.models.remember.values.weighted_gather import weighted_gather

_LIBRARIES = ("torch", "lightning", "transformers", "peft", "torchmetrics", "triton", "faiss-gpu")


def versions(setting: Setting) -> dict[str, Any]:
    """Name the libraries, and measure the bandwidth of a large copy."""
    found: dict[str, Any] = {"python": platform.python_version()}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = None
    if setting.device.type == "cuda":
        found["cuda"] = torch.version.cuda
        found["capability"] = list(torch.cuda.get_device_capability(setting.device))
    num_bytes = setting.size(1 << 31, 1 << 24)
    return found | {"copy_gb_per_s": copy_bandwidth(setting.device, num_bytes)}


def memory_operations(setting: Setting) -> dict[str, Any]:
    """Compare lookup, gather and both gradients with plain references; repeat them to the bit."""
    numbers: dict[str, Any] = {"lookup_scores": _lookup_difference(setting)}
    held = numbers["lookup_scores"] < 1e-5
    for dtype, bound in ((torch.float32, 1e-5), (torch.bfloat16, 2e-2)):
        for num_slots in (setting.size(2**16, 2**10), setting.size(2**20, 2**12)):
            largest, same = _table_difference(setting, num_slots, dtype)
            numbers[f"table_{num_slots}_{str(dtype).removeprefix('torch.')}"] = largest
            numbers["equal_to_the_bit"] = same and numbers.get("equal_to_the_bit", True)
            held = held and largest < bound and same
    return numbers | {"held": held}


def _lookup_difference(setting: Setting) -> float:
    torch.manual_seed(0)
    num_keys, kept = setting.size(256, 32), 32
    query = torch.randn(64, 4, 2, 64, device=setting.device)
    keys = torch.randn(4, 2, num_keys, 64, device=setting.device)
    ids, scores = product_key_topk(query, keys, kept)
    halves = torch.einsum("bhte,htne->bhtn", query.double(), keys.double())
    all_scores = (halves[:, :, 0, :, None] + halves[:, :, 1, None, :]).flatten(2)
    best = all_scores.topk(kept)
    at_ids = all_scores.gather(2, ids)  # ties may order ids differently, scores may not differ
    return max(largest_difference(scores, best.values), largest_difference(at_ids, best.values))


def _table_difference(setting: Setting, num_slots: int, dtype: torch.dtype) -> tuple[float, bool]:
    """Return the largest relative difference of three results, and whether three runs agree."""
    torch.manual_seed(1)
    device, width = setting.device, setting.size(256, 64)
    with device:
        table = ValueTable(num_slots, width, "dense", dtype)
        ids_BK = torch.randint(num_slots, (setting.size(4096, 64), 64))
        weights_BK = torch.rand(ids_BK.shape).requires_grad_()
        grad_BD = torch.randn(len(ids_BK), width)
    runs: list[tuple[torch.Tensor, ...]] = []
    for _ in range(3):
        table.weight.grad = weights_BK.grad = None
        read_BD = table(ids_BK, weights_BK)
        read_BD.backward(grad_BD.to(read_BD.dtype))
        assert table.weight.grad is not None
        assert weights_BK.grad is not None
        runs.append((read_BD.detach(), table.weight.grad, weights_BK.grad))
    exact = table.weight.detach().double().requires_grad_()
    exact_weights = weights_BK.detach().to(dtype).double().requires_grad_()
    expected = (exact[ids_BK] * exact_weights[..., None]).sum(1)
    expected.backward(grad_BD.to(dtype).double())
    assert exact.grad is not None
    assert exact_weights.grad is not None
    references = (expected.detach(), exact.grad, exact_weights.grad)
    pairs = zip(runs[0], references, strict=True)
    largest = max(largest_difference(ours, other) for ours, other in pairs)
    same = all(
        torch.equal(first, other)
        for run in runs[1:]
        for first, other in zip(runs[0], run, strict=True)
    )
    return largest, same


def memory_layer_parts(setting: Setting) -> dict[str, Any]:
    """Time each part of a memory layer of the paper's width."""
    sizes = LayerSizes(
        setting.size(1024, 64),
        num_tokens=setting.size(32_768, 64),
        width=setting.size(1024, 32),
        half_dim=setting.size(512, 16),
    )
    sides = LayerSides(sizes, setting.device)
    parts = breakdown(sides, setting.size(3, 1))
    copy = copy_bandwidth(setting.device, setting.size(1 << 30, 1 << 24))
    rates = bandwidth(sides, parts, copy)
    return {
        **{f"{part['part']}_ms": 1e3 * part["median_s"] for part in parts},
        **{f"{rate['part']}_gb_per_s": rate["gb_per_s"] for rate in rates},
    }


def compiled_kernels(setting: Setting) -> dict[str, Any]:
    """Compile the gather by torch.compile and compare it with the eager one.

    Raises:
        Unavailable: on a CPU.
    """
    setting.need_cuda("a compiled gather")
    try:
        version("triton")
    except PackageNotFoundError:
        raise Unavailable("triton is not installed") from None
    torch.manual_seed(2)
    with setting.device:
        values_SD = torch.randn(setting.size(2**20, 2**10), 256)
        ids_BK = torch.randint(len(values_SD), (4096, 64))
        weights_BK = torch.rand(ids_BK.shape)
    compiled = torch.compile(weighted_gather)
    difference = largest_difference(
        compiled(values_SD, ids_BK, weights_BK), weighted_gather(values_SD, ids_BK, weights_BK)
    )
    return {
        "difference": difference,
        "eager_ms": setting.milliseconds(lambda: weighted_gather(values_SD, ids_BK, weights_BK)),
        "compiled_ms": setting.milliseconds(lambda: compiled(values_SD, ids_BK, weights_BK)),
        "held": difference < 1e-5,
    }
