"""Compact numbers for the few used rows of a large table, without a pass over the table."""

import torch
from torch import Tensor

# Shapes: U rows of a query, R known rows


class RowPositions:
    """Assigns positions 0, 1, ... to rows of a table, in the order of their first appearance.

    A look-up costs O(U log R), new rows cost O(R). Memory grows with R, not with the table.

    >>> positions = RowPositions()
    >>> positions.add(torch.tensor([70, 5])).tolist(), positions.add(torch.tensor([5, 9])).tolist()
    ([0, 1], [1, 2])
    >>> positions.rows.tolist()
    [70, 5, 9]
    """

    def __init__(self) -> None:
        self._sorted_R = torch.empty(0, dtype=torch.int64)
        self._position_R = torch.empty(0, dtype=torch.int64)

    def __len__(self) -> int:
        return self._sorted_R.numel()

    @property
    def rows(self) -> Tensor:
        """All known rows, int64 (R,), in the order of their positions."""
        rows_R = torch.empty_like(self._sorted_R)
        rows_R[self._position_R] = self._sorted_R
        return rows_R

    @property
    def sorted_rows(self) -> Tensor:
        """All known rows, int64 (R,), ascending."""
        return self._sorted_R

    def add(self, rows_U: Tensor) -> Tensor:
        """Find the positions of rows, and assign positions to new rows.

        Args:
            rows_U: int64, distinct, in any order.

        Returns:
            positions_U: int64. New rows are numbered in the order given.
        """
        self._move_to(rows_U.device)
        new = rows_U[~self._knows(rows_U)]
        if new.numel():
            self._insert(new)
        return self._position_R[torch.searchsorted(self._sorted_R, rows_U)]

    def load(self, rows_R: Tensor) -> None:
        """Restore the state from `rows`."""
        self._sorted_R, self._position_R = rows_R.sort()

    def num_bytes(self) -> int:
        """Return the memory used, in bytes."""
        return 2 * self._sorted_R.numel() * self._sorted_R.element_size()

    def _knows(self, rows_U: Tensor) -> Tensor:
        if len(self) == 0:
            return torch.zeros_like(rows_U, dtype=torch.bool)
        place_U = torch.searchsorted(self._sorted_R, rows_U).clamp_(max=len(self) - 1)
        return self._sorted_R[place_U] == rows_U

    def _insert(self, new: Tensor) -> None:
        """Merge new rows into the sorted ones."""
        new_sorted, order = new.sort()
        place = torch.searchsorted(self._sorted_R, new_sorted)
        place += torch.arange(new.numel(), device=new.device)
        is_old = torch.ones(len(self) + new.numel(), dtype=torch.bool, device=new.device)
        is_old[place] = False
        merged = torch.empty(is_old.shape, dtype=torch.int64, device=new.device)
        positions = torch.empty_like(merged)
        merged[place], merged[is_old] = new_sorted, self._sorted_R
        positions[place], positions[is_old] = order + len(self), self._position_R
        self._sorted_R, self._position_R = merged, positions

    def _move_to(self, device: torch.device) -> None:
        if self._sorted_R.device != device:
            self._sorted_R = self._sorted_R.to(device)
            self._position_R = self._position_R.to(device)
