"""A check of which value rows and which other parameters a run has changed, by hashes."""

import hashlib
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.trainer_parts import callbacks_of
from triptych.models.remember.memory_blocks import value_tables

# Shapes: S rows of a table, D its width

_CHUNK = 2**22  # values hashed at once
_BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ChangedRows(Callback):
    """Reports at the end of a run how many value rows have changed in any bit.

    Rows are compared by a 64-bit hash (`row_hashes`), all other parameters by SHA-256. So nothing
    as large as a table is kept. With a `SparseMemoryFinetuning`, rows that it never selected are
    also counted: neither they nor the other parameters may change.

    Attributes:
        changed: Rows that changed, for each table: int64, ascending; known after training.
        changed_parameters: Names of the other parameters that changed.
        changed_unselected: Number of rows in `changed` that no step selected; None without a
            `SparseMemoryFinetuning`.

    Raises:
        ValueError: if the module has no value table.
    """

    def __init__(self) -> None:
        self.changed: list[Tensor] = []
        self.changed_parameters: list[str] = []
        self.changed_unselected: int | None = None
        self._start: dict[str, Any] | None = None
        self._num_rows = 0
        self._num_parameters = 0
        self._num_unselected = 0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not value_tables(pl_module):
            raise ValueError(
                f"ChangedRows: {type(pl_module).__name__} has no value table: leave this callback "
                "out, or start from a model with memory layers"
            )
        if self._start is None:  # a resumed run is compared with its first start
            self._start = _hashes(pl_module)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self._start is not None
        end = _hashes(pl_module)
        self._num_rows = sum(map(len, end["rows"]))
        self._num_parameters = len(end["others"])
        self.changed = [
            (before_S != after_S).nonzero().flatten()
            for before_S, after_S in zip(self._start["rows"], end["rows"], strict=True)
        ]
        before = self._start["others"]
        self.changed_parameters = [
            name for name, digest in end["others"].items() if before.get(name) != digest
        ]
        for callback in callbacks_of(trainer):
            if isinstance(callback, SparseMemoryFinetuning):
                selected = [rows.cpu() for rows in callback.rows_written]
                self._num_unselected = self._num_rows - sum(map(len, selected))
                self.changed_unselected = sum(
                    int((~torch.isin(changed, rows)).sum())
                    for changed, rows in zip(self.changed, selected, strict=True)
                )

    def summary_rows(self) -> list[tuple[str, str]]:
        """Return the numbers of changed rows and parameters."""
        rows = [("memory rows changed", f"{sum(map(len, self.changed)):,} of {self._num_rows:,}")]
        if self.changed_unselected is not None:
            count = f"{self.changed_unselected:,} of {self._num_unselected:,}"
            rows.append(("rows changed that no step selected", count))
        others = f"{len(self.changed_parameters):,} of {self._num_parameters:,}"
        return [*rows, ("other parameters changed", others)]

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._start or {}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._start = state_dict or None


def row_hashes(weight_SD: Tensor) -> Tensor:
    """Hash the bits of each row: int64 (S,), on the CPU.

    The hash is the sum modulo 2^64 of each value's bits times an odd random number of its column.
    Rows that differ in one value never have equal hashes; others only by chance.

    >>> a = torch.tensor([[0.0, 1.0], [0.0, 1.0], [-0.0, 1.0]])
    >>> first, second, third = row_hashes(a).tolist()
    >>> first == second, first == third
    (True, False)
    """
    bits_SD = weight_SD.detach().contiguous().view(_BITS[weight_SD.element_size()])
    generator = torch.Generator().manual_seed(0)
    factor_D = torch.randint(-(2**63), 2**63 - 1, bits_SD.shape[1:], generator=generator) | 1
    factor_D = factor_D.to(bits_SD.device)
    parts = torch.split(bits_SD, max(1, _CHUNK // bits_SD.shape[1]))
    return torch.cat([(part_SD.long() * factor_D).sum(1).cpu() for part_SD in parts])


def _hashes(pl_module: LightningModule) -> dict[str, Any]:
    tables = value_tables(pl_module)
    in_tables = {id(table.weight) for table in tables}
    return {
        "rows": [row_hashes(table.weight) for table in tables],
        "others": {
            name: hashlib.sha256(
                parameter.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
            ).hexdigest()
            for name, parameter in pl_module.named_parameters()
            if id(parameter) not in in_tables
        },
    }
