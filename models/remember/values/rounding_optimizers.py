"""AdamW and SGD whose bfloat16 weights learn as float32 weights do.

A bfloat16 weight is updated in float32 and rounded stochastically; other weights get the update of
the torch optimizer. Bytes for each bfloat16 weight under AdamW: weight 2, gradient 2, moments 8
(float32), 12 in all. torch's bfloat16 moments would need 4, but a second moment stands still where
1 - beta2 is below about 1/256. A float32 weight needs 16. Copies in float32 exist for at most 16
million weights at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import SGD, AdamW, Optimizer
from torch.optim.adamw import adamw

from triptych.models.remember.values.stochastic_rounding import (
    round_stochastically,
    rounding_generator,
)

_LARGEST_COPY = 1 << 24  # weights
_MOMENTS = ("exp_avg", "exp_avg_sq")


class RoundingAdamW(AdamW):
    """Fused AdamW with stochastic rounding of bfloat16 weights.

    Weights may be shards (DTensors). Each shard rounds with random bits of its own, so a resumed
    run repeats to the bit only on the same number of processes.

    Args:
        params: Parameters or groups, as in `torch.optim.AdamW`.
        **settings: Those of `torch.optim.AdamW`, without `fused`, `amsgrad` and `maximize`.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, fused=True, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have a gradient."""
        loss = _evaluated(closure)
        with _rounded_ones_apart(self) as apart:
            super().step()
        found_inf, scale = getattr(self, "found_inf", None), getattr(self, "grad_scale", None)
        if apart and found_inf is not None and float(found_inf):
            return loss  # a gradient scaler skips this step
        for number, parameter, gradient, group in apart:
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(
                    (), dtype=torch.float32
                )  # on the CPU, so that nothing waits for it
                state |= {n: torch.zeros_like(parameter, dtype=torch.float32) for n in _MOMENTS}
            step = torch.full(
                (), float(state["step"]), device=parameter.device, dtype=torch.float32
            )
            moments = [state[name] for name in _MOMENTS]
            place = (int(state["step"]), number)
            parts = _exact_parts(place, parameter, gradient, *moments)
            for exact, part, first, second in parts:
                _adamw(exact, part, first, second, step.clone(), scale, group)
            state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; torch would round the moments of a bfloat16 weight to bfloat16."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for (_, parameter, _), key in zip(_numbered(self), keys, strict=True):
            saved = state_dict["state"].get(key)
            if saved and _is_rounded(parameter):
                self.state[parameter] |= {
                    name: saved[name].to(parameter.device, torch.float32, copy=True)
                    for name in _MOMENTS
                } | {
                    "step": torch.as_tensor(saved["step"], dtype=torch.float32)
                    .float()
                    .cpu()
                    .clone()
                }


class RoundingSGD(SGD):
    """SGD without momentum, with stochastic rounding of bfloat16 weights.

    Args:
        params: Parameters or groups, as in `torch.optim.SGD`.
        **settings: `lr` and `weight_decay`.
    """

    def __init__(self, params: Any, **settings: Any) -> None:
        super().__init__(params, **settings)
        if any(group["momentum"] or group["maximize"] for group in self.param_groups):
            raise ValueError("RoundingSGD has neither momentum nor maximize")

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all weights that have a gradient."""
        loss = _evaluated(closure)
        with _rounded_ones_apart(self) as apart:
            super().step()
        for number, parameter, gradient, group in apart:
            state = self.state[parameter]
            state.setdefault("step", torch.zeros((), dtype=torch.float32))
            place = (int(state["step"]), number)
            for exact, part in _exact_parts(place, parameter, gradient):
                part = part.float().add(exact, alpha=group["weight_decay"])
                exact.add_(part, alpha=-float(group["lr"]))
            state["step"] += 1
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state; counts of steps stay in float32 and on the CPU."""
        super().load_state_dict(state_dict)
        keys = [key for group in state_dict["param_groups"] for key in group["params"]]
        for (_, parameter, _), key in zip(_numbered(self), keys, strict=True):
            saved = state_dict["state"].get(key)
            if saved and "step" in saved:
                self.state[parameter]["step"] = (
                    torch.as_tensor(saved["step"], dtype=torch.float32).float().cpu().clone()
                )


def _adamw(
    exact: Tensor,
    gradient: Tensor,
    first: Tensor,
    second: Tensor,
    step: Tensor,
    scale: Tensor | None,
    group: dict[str, Any],
) -> None:
    adamw(
        [exact],
        [gradient.float()],
        [first],
        [second],
        [],
        [step],
        fused=True,
        grad_scale=scale,
        amsgrad=False,
        beta1=group["betas"][0],
        beta2=group["betas"][1],
        lr=group["lr"],
        weight_decay=group["weight_decay"],
        eps=group["eps"],
        maximize=False,
    )


def _exact_parts(
    place: tuple[int, ...], weight: Tensor, *more: Tensor
) -> Iterator[tuple[Tensor, ...]]:
    """Yield this process's weights part by part, in float32, and write each back, rounded.

    Args:
        place: Of this update in training, for `rounding_generator`.
        weight: bfloat16, of at least one dimension.
        more: Tensors of the same shape and layout; their parts are yielded with the weights.
    """
    generator = rounding_generator(weight.device, *place, _shard(weight))
    rows = max(1, _LARGEST_COPY // max(1, weight[:1].numel()))
    locals_ = [t.to_local() if isinstance(t, DTensor) else t for t in (weight, *more)]
    for part, *others in zip(*(tensor.split(rows) for tensor in locals_), strict=True):
        exact = part.float()
        yield (exact, *others)
        part.copy_(round_stochastically(exact, generator))


def _shard(weight: Tensor) -> int:
    """Return the number of this process's shard; 0 for a whole weight."""
    number = 0
    if isinstance(weight, DTensor):
        coordinate = weight.device_mesh.get_coordinate() or ()
        for size, at, placement in zip(
            weight.device_mesh.shape, coordinate, weight.placements, strict=True
        ):
            number = number * size + (at if placement.is_shard() else 0)
    return number


def _is_rounded(parameter: Tensor) -> bool:
    return parameter.dtype == torch.bfloat16 and parameter.ndim > 0


def _numbered(optimizer: Optimizer) -> Iterator[tuple[int, nn.Parameter, dict[str, Any]]]:
    number = 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield number, parameter, group
            number += 1


@contextmanager
def _rounded_ones_apart(
    optimizer: Optimizer,
) -> Iterator[list[tuple[int, nn.Parameter, Tensor, dict[str, Any]]]]:
    """Take the gradients of bfloat16 weights away, so that torch's step passes over them.

    Yields:
        Number, weight, gradient and group of each; the gradients return on exit.
    """
    apart = [
        (number, parameter, parameter.grad, group)
        for number, parameter, group in _numbered(optimizer)
        if _is_rounded(parameter) and parameter.grad is not None
    ]
    try:
        for _, parameter, _, _ in apart:
            parameter.grad = None
        yield apart
    finally:
        for _, parameter, gradient, _ in apart:
            parameter.grad = gradient


def _evaluated(closure: Callable[[], Any] | None) -> Any:
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
