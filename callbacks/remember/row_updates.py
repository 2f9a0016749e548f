"""Updates of some rows of a model's value tables, and their observers."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from triptych.callbacks.remember.read_protection import ReadProtection
from triptych.models.remember.values.row_optimizers import RowOptimizer
from triptych.models.remember.values.row_positions import RowPositions
from triptych.models.remember.values.value_table import RowGradient, ValueTable


class RowObserver:
    """An observer of row updates; `SparseMemoryFinetuning.observers` holds them.

    A subclass overrides the methods that it needs. Rows are equal on every rank.
    """

    def before_update(self, table_id: int, table: ValueTable, rows: Tensor) -> None:
        """Handle rows that are about to change.

        Args:
            table_id: Position of the table in `value_tables(pl_module)`.
            table: The table, with the old values.
            rows: int64, ascending, at least one.
        """

    def after_update(self, table_id: int, table: ValueTable, rows: Tensor) -> None:
        """Handle rows that have changed; no others have."""


class RowUpdates:
    """A row optimizer for each table, and the rows written so far.

    Args:
        tables: All tables of the module.
        build_optimizer: Makes the optimizer of one table.
        observers: Called at every update; the list may change between updates.
        learning_rates: Step size of each table; None: the optimizers' own.
        protection: Reads that the updates shall leave as they are; None: none.
    """

    def __init__(
        self,
        tables: Sequence[ValueTable],
        build_optimizer: Callable[[], RowOptimizer],
        observers: list[RowObserver],
        learning_rates: Sequence[float] | None = None,
        protection: ReadProtection | None = None,
    ) -> None:
        self.tables = tables
        self.observers = observers
        self.protection = protection
        self.optimizers = [build_optimizer() for _ in tables]
        for optimizer, rate in zip(self.optimizers, learning_rates or (), strict=False):
            optimizer.learning_rate = rate
        #: Steps that updated rows.
        self.num_updates = 0
        self._written = [RowPositions() for _ in tables]

    @property
    def rows_written(self) -> list[Tensor]:
        """Distinct rows updated so far, for each table: int64, ascending."""
        return [written.sorted_rows for written in self._written]

    def apply(self, gradients: Sequence[RowGradient]) -> None:
        """Update exactly the rows that have a gradient.

        Args:
            gradients: One for each table, possibly without rows.
        """
        for number, (rows_U, grad_UD) in enumerate(gradients):
            if rows_U.numel() == 0:
                continue
            table = self.tables[number]
            for observer in self.observers:
                observer.before_update(number, table, rows_U)
            constrain = None
            if self.protection is not None:
                constrain = partial(self.protection.constrained, number, rows_U)
            self.optimizers[number].step(table.weight, rows_U, grad_UD, constrain)
            self._written[number].add(rows_U)
            for observer in self.observers:
                observer.after_update(number, table, rows_U)
        self.num_updates += 1

    def state_dict(self) -> dict[str, Any]:
        """Return tensors and plain types, as large as the rows written."""
        return {
            "num_updates": self.num_updates,
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "rows_written": self.rows_written,
            "protection": None if self.protection is None else self.protection.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Raises:
            ValueError: if the state is that of another optimizer.
        """
        self.num_updates = state_dict["num_updates"]
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        for written, rows in zip(self._written, state_dict["rows_written"], strict=True):
            written.load(rows)
        if self.protection is not None and state_dict.get("protection") is not None:
            self.protection.load_state_dict(state_dict["protection"])
