"""What every check gets and gives."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(frozen=True)
class Setting:
    """Where the checks run.

    Args:
        device: The GPU, or the CPU to test the script.
        quick: Smallest sizes.
    """

    device: torch.device
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """Return a size, or the one of a quick run."""
        return quick if self.quick else full

    def need_cuda(self, what: str) -> None:
        """Stop a check that means nothing on a CPU.

        Raises:
            Unavailable: on a CPU.
        """
        if self.device.type != "cuda":
            raise Unavailable(f"{what} needs CUDA")

    def milliseconds(self, run: Callable[[], Any], rounds: int = 5) -> float:
        """Return the median time of a call, after one that warms up."""
        run()
        times = []
        for _ in range(1 if self.quick else rounds):
            self.wait()
            began = time.perf_counter()
            run()
            self.wait()
            times.append(1e3 * (time.perf_counter() - began))
        return statistics.median(times)

    def wait(self) -> None:
        """Wait until the device has done all its work."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


class Unavailable(RuntimeError):  # noqa: N818 (no error: the check does not apply)
    """A check cannot run on this machine."""


#: Returns numbers and, if there is a bound, `held`.
Check = Callable[[Setting], dict[str, Any]]


def largest_difference(ours: torch.Tensor, other: torch.Tensor) -> float:
    """Return the largest absolute difference over the largest absolute value."""
    ours, other = ours.detach().double().cpu(), other.detach().double().cpu()
    return float((ours - other).abs().max() / other.abs().max().clamp(min=1e-30))
