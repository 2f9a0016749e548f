"""The base of metrics that need all values again in `compute`."""

from typing import Any, Self

import torch
from torch import Tensor

from triptych.metrics.summed_metric import SummedMetric


class GatheredMetric(SummedMetric):
    """A metric that keeps rows of numbers in addition to sums, and gathers them from all ranks.

    A row state is a list of one-dimensional tensors that starts with an empty one of the state's
    dtype. A rank without data can therefore gather with the others; torchmetrics would add an empty
    float32 tensor, whatever the dtype.

    Gathered rows are in the order of ranks, those of merged copies in either order. A subclass must
    not depend on the order.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._row_dtypes: dict[str, torch.dtype] = {}

    def add_row_state(self, name: str, dtype: torch.dtype) -> None:
        """Add a state of rows that are gathered over batches and ranks.

        Args:
            name: Name of its attribute.
            dtype: Dtype of its elements.
        """
        self.add_state(name, [], dist_reduce_fx="cat")
        self._row_dtypes[name] = dtype
        self._start_with_empty(name)

    def append_rows(self, name: str, values: Any) -> None:
        """Add numbers to a row state.

        Args:
            name: The state.
            values: A tensor of any shape, to be flattened, or a sequence of numbers.
        """
        dtype = self._row_dtypes[name]
        rows = torch.as_tensor(values, dtype=dtype).detach().reshape(-1).to(self.device)
        getattr(self, name).append(rows)

    def rows(self, name: str) -> Tensor:
        """Concatenate a row state to one dimension; inside `compute`, of all ranks."""
        state = getattr(self, name)
        return state if isinstance(state, Tensor) else torch.cat(state)

    def reset(self) -> None:
        """Reset all states."""
        for name in self._row_dtypes:
            setattr(self, name, [])  # torchmetrics empties the list, which a copy may share
        super().reset()
        for name in self._row_dtypes:
            self._start_with_empty(name)

    def set_dtype(self, dst_type: str | torch.dtype) -> Self:
        """Convert the states of floating point, and rows that are added later."""
        super().set_dtype(dst_type)
        for name, dtype in self._row_dtypes.items():
            if dtype.is_floating_point:
                self._row_dtypes[name] = self.dtype
        return self

    def _start_with_empty(self, name: str) -> None:
        getattr(self, name).append(torch.zeros(0, dtype=self._row_dtypes[name], device=self.device))
