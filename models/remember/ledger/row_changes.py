"""Rows of a value table before and after: the algebra of small changes to a large table.

Rows are compared by their bits: -0.0 differs from 0.0, and a NaN equals itself.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# Shapes: D value width, U V W rows
Elsewhere = Literal["shift", "stay"]
INTEGERS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True, eq=False)
class RowChange:
    """Values of some rows of one table before and after a change.

    Args:
        rows_U: int64, ascending and distinct.
        old_UD: Values before, in the table's dtype.
        new_UD: Values after.

    Raises:
        ValueError: if rows are not ascending, or shapes or dtypes do not fit.
    """

    rows_U: Tensor
    old_UD: Tensor
    new_UD: Tensor

    def __post_init__(self) -> None:
        rows, old, new = self.rows_U, self.old_UD, self.new_UD
        if rows.dtype != torch.int64 or rows.dim() != 1:
            raise ValueError(f"rows must be int64 (U,), got {rows.dtype} {tuple(rows.shape)}")
        if rows.numel() and (int(rows[0]) < 0 or not bool((rows[1:] > rows[:-1]).all())):
            raise ValueError("rows must be ascending, distinct and at least 0")
        if old.dim() != 2 or old.shape[0] != rows.numel() or old.shape != new.shape:
            raise ValueError(
                f"{rows.numel()} rows need old and new values of the shape ({rows.numel()}, D), "
                f"got {tuple(old.shape)} and {tuple(new.shape)}"
            )
        if old.dtype != new.dtype:
            raise ValueError(f"old values are {old.dtype}, but new values {new.dtype}")

    @classmethod
    def between(cls, rows_U: Tensor, old_UD: Tensor, new_UD: Tensor) -> "RowChange":
        """Sort distinct rows, and drop those with the same bits before and after."""
        order = rows_U.argsort()
        order = order[~same_bits(old_UD[order], new_UD[order])]
        return cls(rows_U[order], old_UD[order], new_UD[order])

    @classmethod
    def none(cls, value_dim: int, dtype: torch.dtype) -> "RowChange":
        """Return a change of no rows."""
        empty_UD = torch.empty(0, value_dim, dtype=dtype)
        return cls(torch.empty(0, dtype=torch.int64), empty_UD, empty_UD)

    def __len__(self) -> int:
        return self.rows_U.numel()

    def inverse(self) -> "RowChange":
        """Return the change from after to before."""
        return RowChange(self.rows_U, self.new_UD, self.old_UD)

    def only(self, keep_U: Tensor) -> "RowChange":
        """Keep the rows where `keep_U` is True."""
        return RowChange(self.rows_U[keep_U], self.old_UD[keep_U], self.new_UD[keep_U])

    def among(self, rows_V: Tensor) -> "RowChange":
        """Keep the rows that are also in `rows_V`."""
        return self.only(torch.isin(self.rows_U, rows_V))

    def rebased(self, by: "RowChange", elsewhere: Elsewhere = "shift") -> "RowChange":
        """Return this change as if `by` had been applied before it.

        On rows that both write, a value equal to `by`'s old value to the bit becomes `by`'s new
        value. Any other value is shifted by `by`'s difference, or stays. Equal bits become equal
        bits, so a chain of changes remains a chain.
        """
        at_U, is_shared_U = find_rows(by.rows_U, self.rows_U)
        if not bool(is_shared_U.any()):
            return self
        place_C = at_U[is_shared_U]
        from_CD, to_CD = by.old_UD[place_C], by.new_UD[place_C]
        old_UD, new_UD = self.old_UD.clone(), self.new_UD.clone()
        for values_UD in (old_UD, new_UD):
            values_UD[is_shared_U] = moved(values_UD[is_shared_U], from_CD, to_CD, elsewhere)[0]
        return RowChange.between(self.rows_U, old_UD, new_UD)


def moved(
    present_UD: Tensor,
    from_UD: Tensor,
    to_UD: Tensor,
    elsewhere: Elsewhere = "shift",
) -> tuple[Tensor, Tensor]:
    """Move rows from one value to another.

    Args:
        present_UD: Present values of the rows.
        from_UD: Their expected values.
        to_UD: Their new values.
        elsewhere: Rows with other than the expected values are shifted by the difference
            `to - from`, computed in float32 and rounded once, or stay the same.

    Returns:
        The new values, and True where a row held exactly `from` and now holds exactly `to`.
    """
    exact_U = same_bits(present_UD, from_UD)
    if elsewhere == "stay":
        other_UD = present_UD
    else:
        wide = torch.promote_types(present_UD.dtype, torch.float32)
        shift_UD = to_UD.to(wide) - from_UD.to(wide)
        other_UD = (present_UD.to(wide) + shift_UD).to(present_UD.dtype)
    return torch.where(exact_U[:, None], to_UD, other_UD), exact_U


def same_bits(a_UD: Tensor, b_UD: Tensor) -> Tensor:
    """Compare rows bit for bit.

    >>> same_bits(torch.tensor([[0.0, 1.0], [0.0, 1.0]]), torch.tensor([[-0.0, 1.0], [0.0, 1.0]]))
    tensor([False,  True])
    """
    kind = INTEGERS[a_UD.element_size()]
    equal_UD = a_UD.contiguous().view(kind) == b_UD.contiguous().view(kind)
    return equal_UD.all(dim=1)


def find_rows(ascending_W: Tensor, rows_U: Tensor) -> tuple[Tensor, Tensor]:
    """Look up rows among ascending rows; returns their places, and True for rows found.

    >>> find_rows(torch.tensor([2, 5, 9]), torch.tensor([5, 6]))[1]
    tensor([ True, False])
    """
    at_U = torch.searchsorted(ascending_W, rows_U)
    if not ascending_W.numel():
        return at_U, torch.zeros_like(rows_U, dtype=torch.bool)
    at_U = at_U.clamp(max=ascending_W.numel() - 1)
    return at_U, ascending_W[at_U] == rows_U


def composed(changes: Sequence[RowChange]) -> RowChange:
    """Compose a chain to one change: each row from its first old to its last new value."""
    rows_W = torch.cat([change.rows_U for change in changes])
    order_W = rows_W.argsort(stable=True)
    rows_W = rows_W[order_W]
    is_new_row_W = torch.ones_like(rows_W, dtype=torch.bool)
    is_new_row_W[1:] = rows_W[1:] != rows_W[:-1]
    is_last_W = torch.ones_like(is_new_row_W)
    is_last_W[:-1] = is_new_row_W[1:]
    old_WD = torch.cat([change.old_UD for change in changes])
    new_WD = torch.cat([change.new_UD for change in changes])
    return RowChange(
        rows_W[is_new_row_W], old_WD[order_W[is_new_row_W]], new_WD[order_W[is_last_W]]
    )


def difference(a: RowChange, b: RowChange) -> RowChange:
    """Return the change from a table with `a` to the one with `b`, both made on equal values.

    Raises:
        ValueError: if a row that both write had different values before.
    """
    at_U, is_shared_U = find_rows(b.rows_U, a.rows_U)
    if not bool(same_bits(a.old_UD[is_shared_U], b.old_UD[at_U[is_shared_U]]).all()):
        raise ValueError(
            "the two changes were made on different values of the rows that both write: compare "
            "changes that start from the same model"
        )
    rows_U = torch.cat([a.rows_U, b.rows_U]).unique()
    from_UD, to_UD = (a.old_UD.new_empty(rows_U.numel(), a.old_UD.shape[1]) for _ in range(2))
    at_a, at_b = torch.searchsorted(rows_U, a.rows_U), torch.searchsorted(rows_U, b.rows_U)
    from_UD[at_b], to_UD[at_a] = b.old_UD, a.old_UD
    from_UD[at_a], to_UD[at_b] = a.new_UD, b.new_UD
    return RowChange.between(rows_U, from_UD, to_UD)
