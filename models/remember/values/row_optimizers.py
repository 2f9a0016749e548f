"""Optimizers for a few rows of a large table, with state and step count per row.

A dense optimizer also moves rows with zero gradient, by decay and earlier momentum, and keeps state
for all rows. These optimizers update only the given rows. All other rows stay the same to the bit,
and only rows that were updated at least once have state.

Each row moves like a separate parameter under the torch optimizer of the same name, stepped only
when the row is given. The bias correction uses the row's step count. Between updates neither its
moments nor its values decay.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from triptych.models.remember.values.row_positions import RowPositions
from triptych.models.remember.values.stochastic_rounding import (
    round_stochastically,
    rounding_generator,
)

# Shapes: S slots, D value width, U given rows, R rows with state, C capacity in rows

RowOptimizerName = Literal["sgd", "adagrad", "adamw"]
STEPS = "steps"
_GROWTH = 1.5


class RowOptimizer(ABC):
    """Updates given rows of one table in place.

    State is held in compact tensors that grow with the number of rows updated so far. State and
    arithmetic are float32 (float64 for a float64 table). A bfloat16 table is rounded once, at the
    end, and stochastically, so that it learns as a float32 table does. The random bits depend on
    the number of updates alone: resumed runs and processes with copies of a table agree.

    Args:
        learning_rate: Step size; may change between steps.

    Raises:
        ValueError: if a number is out of range.
    """

    #: Names of a row's state, each as wide as the row. Empty: no state, no step count.
    state_names: tuple[str, ...] = ()

    def __init__(self, learning_rate: float) -> None:
        _check(learning_rate=learning_rate)
        self.learning_rate = learning_rate
        self._num_updates = 0
        self._positions = RowPositions()
        self._state: dict[str, Tensor] = {}

    @abstractmethod
    def _updated(
        self, weight_UD: Tensor, grad_UD: Tensor, state: dict[str, Tensor], steps_U1: Tensor
    ) -> Tensor:
        """Compute the rows after this step.

        Args:
            weight_UD: The rows; may be changed in place, like `state`.
            grad_UD: Their gradients.
            state: The rows' state, (U, D) each.
            steps_U1: Number of steps of each row, including this one, in the state's dtype.
        """

    @torch.no_grad()
    def step(
        self,
        weight_SD: Tensor,
        rows_U: Tensor,
        grad_UD: Tensor,
        constrain: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        """Update only these rows, in place.

        Args:
            weight_SD: The table.
            rows_U: int64, distinct.
            grad_UD: Gradient of these rows, of any float type.
            constrain: Maps the change of the rows, (U, D), to the change to make instead. The
                rows' state is that of the change asked for.

        Raises:
            ValueError: if rows and gradient do not fit the table or each other.
        """
        if rows_U.ndim != 1 or grad_UD.shape != (rows_U.numel(), weight_SD.shape[1]):
            raise ValueError(
                f"{tuple(rows_U.shape)} rows with a gradient of shape {tuple(grad_UD.shape)} do "
                f"not fit a table of shape {tuple(weight_SD.shape)}"
            )
        if rows_U.numel() == 0:
            return
        exact = torch.promote_types(weight_SD.dtype, torch.float32)
        weight_UD, grad_UD = weight_SD[rows_U].to(exact), grad_UD.to(exact)
        state, steps_U1 = {}, weight_UD.new_empty(0)
        if self.state_names:
            positions_U = self._positions.add(rows_U)
            self._make_room(weight_UD)
            self._state[STEPS][positions_U] += 1
            state = {name: self._state[name][positions_U] for name in self.state_names}
            steps_U1 = self._state[STEPS][positions_U].to(exact).unsqueeze(1)
        before_UD = None if constrain is None else weight_UD.clone()  # updated in place
        updated_UD = self._updated(weight_UD, grad_UD, state, steps_U1)
        if constrain is not None:
            assert before_UD is not None
            updated_UD = before_UD + constrain(updated_UD - before_UD)
        for name, rows in state.items():
            self._state[name][positions_U] = rows
        if weight_SD.dtype == torch.bfloat16:
            generator = rounding_generator(weight_SD.device, self._num_updates)
            updated_UD = round_stochastically(updated_UD, generator)
        weight_SD.index_copy_(0, rows_U, updated_UD.to(weight_SD.dtype))
        self._num_updates += 1

    @property
    def rows(self) -> Tensor:
        """All rows that have state, int64 (R,)."""
        return self._positions.rows

    def num_bytes(self) -> int:
        """Return the memory used by the state, in bytes."""
        held = sum(tensor.numel() * tensor.element_size() for tensor in self._state.values())
        return held + self._positions.num_bytes()

    def state_dict(self) -> dict[str, Any]:
        """Return the optimizer's name and compact state tensors, for `load_state_dict`."""
        filled = {name: tensor[: len(self._positions)] for name, tensor in self._state.items()}
        state = {name: tensor.clone() for name, tensor in filled.items()}
        return {
            "name": type(self).__name__,
            "rows": self._positions.rows,
            "state": state,
            "num_updates": self._num_updates,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the state that `state_dict` returned.

        Raises:
            ValueError: if it is the state of another optimizer.
        """
        state = state_dict["state"]
        expected = {*self.state_names, STEPS} if self.state_names else set()
        if state_dict["name"] != type(self).__name__ or (state and set(state) != expected):
            raise ValueError(
                f"this is the state of {state_dict['name']} with {sorted(state)}, but the "
                f"optimizer is {type(self).__name__} with {sorted(expected)}: resume "
                "with the optimizer and the momentum of the original run"
            )
        self._positions.load(state_dict["rows"])
        self._num_updates = state_dict.get("num_updates", 0)  # old checkpoints lack it
        self._state = {name: tensor.clone() for name, tensor in state.items()}

    def _make_room(self, like_UD: Tensor) -> None:
        """Grow the state, with spare room, if it is too small for the known rows."""
        needed = len(self._positions)
        for name in (*self.state_names, STEPS):
            empty = like_UD.new_zeros(0, dtype=torch.int64) if name == STEPS else like_UD[:0]
            held = self._state.get(name, empty).to(like_UD.device)
            if held.shape[0] < needed:
                room = max(needed, int(held.shape[0] * _GROWTH))
                grown = held.new_zeros(room, *held.shape[1:])
                grown[: held.shape[0]] = held
                held = grown
            self._state[name] = held


class RowSGD(RowOptimizer):
    """Stochastic gradient descent on rows, as `torch.optim.SGD`.

    Args:
        learning_rate: Step size.
        momentum: Momentum factor; without momentum, rows have no state.
        weight_decay: Times the value, added to the gradient.

    Source: 2510.15103, section 5, which uses SGD without momentum.
    """

    def __init__(
        self, learning_rate: float, momentum: float = 0.0, weight_decay: float = 0.0
    ) -> None:
        super().__init__(learning_rate)
        _check(momentum=momentum, weight_decay=weight_decay)
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.state_names = ("momentum",) if momentum else ()

    def _updated(
        self, weight_UD: Tensor, grad_UD: Tensor, state: dict[str, Tensor], steps_U1: Tensor
    ) -> Tensor:
        if self.weight_decay:
            grad_UD = grad_UD.add(weight_UD, alpha=self.weight_decay)
        if self.momentum:
            grad_UD = state["momentum"].mul_(self.momentum).add_(grad_UD)
        return weight_UD.add_(grad_UD, alpha=-self.learning_rate)


class RowAdagrad(RowOptimizer):
    """Adagrad on rows, as `torch.optim.Adagrad`.

    Args:
        learning_rate: Step size.
        eps: Added to the root of the sum of squares.
        weight_decay: Times the value, added to the gradient.
    """

    state_names = ("sum_of_squares",)

    def __init__(self, learning_rate: float, eps: float = 1e-10, weight_decay: float = 0.0) -> None:
        super().__init__(learning_rate)
        _check(eps=eps, weight_decay=weight_decay)
        self.eps = eps
        self.weight_decay = weight_decay

    def _updated(
        self, weight_UD: Tensor, grad_UD: Tensor, state: dict[str, Tensor], steps_U1: Tensor
    ) -> Tensor:
        if self.weight_decay:
            grad_UD = grad_UD.add(weight_UD, alpha=self.weight_decay)
        root_UD = state["sum_of_squares"].addcmul_(grad_UD, grad_UD).sqrt().add_(self.eps)
        return weight_UD.addcdiv_(grad_UD, root_UD, value=-self.learning_rate)


class RowAdamW(RowOptimizer):
    """AdamW on rows, as `torch.optim.AdamW`: values decay only in steps that select them.

    Args:
        learning_rate: Step size.
        betas: Decay of the first and the second moment.
        eps: Added to the root of the second moment.
        weight_decay: Share of the value removed by a step with learning rate 1.
    """

    state_names = ("first_moment", "second_moment")

    def __init__(
        self,
        learning_rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(learning_rate)
        _check(eps=eps, weight_decay=weight_decay)
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas are {betas}: set both to at least 0 and below 1")
        self.betas = (betas[0], betas[1])
        self.eps = eps
        self.weight_decay = weight_decay

    def _updated(
        self, weight_UD: Tensor, grad_UD: Tensor, state: dict[str, Tensor], steps_U1: Tensor
    ) -> Tensor:
        beta1, beta2 = self.betas
        first_UD = state["first_moment"].lerp_(grad_UD, 1 - beta1)
        second_UD = state["second_moment"].mul_(beta2).addcmul_(grad_UD, grad_UD, value=1 - beta2)
        # In float64, since 1 - beta^n loses digits in float32.
        steps_U1 = steps_U1.double()
        correction1_U1 = (1 - beta1**steps_U1).to(weight_UD.dtype)
        correction2_U1 = (1 - beta2**steps_U1).sqrt().to(weight_UD.dtype)
        root_UD = second_UD.sqrt().div_(correction2_U1).add_(self.eps)
        weight_UD.mul_(1 - self.learning_rate * self.weight_decay)
        return weight_UD.addcdiv_(first_UD / correction1_U1, root_UD, value=-self.learning_rate)


def build_row_optimizer(
    name: RowOptimizerName,
    learning_rate: float,
    weight_decay: float = 0.0,
    betas: tuple[float, float] = (0.9, 0.999),
    momentum: float = 0.0,
) -> RowOptimizer:
    """Build an optimizer by name; `betas` are for AdamW and `momentum` is for SGD.

    Raises:
        ValueError: if the name is unknown, or a number is out of range.
    """
    if name == "sgd":
        return RowSGD(learning_rate, momentum, weight_decay)
    if name == "adagrad":
        return RowAdagrad(learning_rate, weight_decay=weight_decay)
    if name == "adamw":
        return RowAdamW(learning_rate, betas, weight_decay=weight_decay)
    raise ValueError(f"optimizer is {name!r}: choose sgd, adagrad or adamw")


def _check(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value}: set it to a finite number of at least 0")
