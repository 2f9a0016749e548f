"""Fingerprints of the model that a change of slots was made on."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from triptych.models.remember.memory_blocks import value_tables

# Shapes: D value width, S slots, U rows
BYTES_PER_CHUNK = 64 * 2**20


class RowValues(NamedTuple):
    """Values of some rows of one table; rows ascending and distinct."""

    rows_U: Tensor
    values_UD: Tensor


@dataclass(frozen=True)
class BaseFingerprint:
    """Identifies the model that deltas start from.

    Attributes:
        around: Hash of everything except the values of the slots: all other parameters and
            persistent buffers with their names, and the tables' sizes and dtypes. These determine
            the slots that a text reads, so rows have no meaning in a model with another hash.
            Sparse memory finetuning never changes it.
        values: Hash of all tables' values at the start of the run.
    """

    around: str
    values: str

    @classmethod
    def of(cls, model: nn.Module) -> "BaseFingerprint":
        """Hash a model in chunks, on any device; gigabytes take seconds.

        Raises:
            ValueError: if the model has no value table.
        """
        return cls(around_fingerprint(model), values_fingerprint(model))

    def require_around(self, model: nn.Module, what: str) -> None:
        """Refuse a model that differs in more than the values of its slots.

        Args:
            model: The model.
            what: Subject of the error message, such as "the delta entry_000012.safetensors".

        Raises:
            ValueError: if it is another model.
        """
        if around_fingerprint(model) != self.around:
            raise ValueError(
                f"{what} was made on another base: the parameters around the value tables, or the "
                "tables' sizes, differ, so the same slot means something else in this model. Give "
                "the model of the run that wrote it (its export/), or the one that run started "
                "from (init_from)."
            )


def around_fingerprint(model: nn.Module) -> str:
    """Hash everything in a model except the values of its slots; see `BaseFingerprint.around`."""
    tables = _tables(model)
    digest = hashlib.sha256()
    weights = {id(table.weight) for table in tables}
    left_out = {
        name
        for name, parameter in model.named_parameters(remove_duplicate=False)
        if id(parameter) in weights
    }
    for table in tables:
        _add_header(digest, "value table", table.weight)
    for name, tensor in sorted(model.state_dict().items()):
        if name in left_out or not isinstance(tensor, Tensor):
            continue
        _add_header(digest, name, tensor)
        _add_bytes(digest, tensor.detach().reshape(-1))
    return digest.hexdigest()


def values_fingerprint(model: nn.Module, put_back: Sequence[RowValues] | None = None) -> str:
    """Hash the values of all tables, with the values of some rows replaced.

    With the old values of some deltas' rows put back, the hash is that of the base if and only if
    the model differs from the base in no other row.

    Args:
        model: The model; it does not change.
        put_back: For each table, values to hash instead of the present ones.
    """
    digest = hashlib.sha256()
    for number, table in enumerate(_tables(model)):
        weight_SD = table.weight.detach()
        rows_per_chunk = max(BYTES_PER_CHUNK // (weight_SD.shape[1] * weight_SD.element_size()), 1)
        replaced = None if put_back is None else put_back[number]
        for start in range(0, weight_SD.shape[0], rows_per_chunk):
            chunk = weight_SD[start : start + rows_per_chunk]
            if replaced is not None:
                rows_U = replaced.rows_U
                first, last = torch.searchsorted(
                    rows_U,
                    torch.tensor(
                        [start, start + chunk.shape[0]], device=rows_U.device, dtype=torch.int64
                    ),
                ).tolist()
                if first < last:
                    chunk = chunk.clone()
                    own = (rows_U[first:last] - start).to(chunk.device)
                    chunk[own] = replaced.values_UD[first:last].to(chunk.device)
            _add_bytes(digest, chunk)
    return digest.hexdigest()


def _tables(model: nn.Module) -> list[Any]:
    tables = value_tables(model)
    if not tables:
        raise ValueError(
            f"{type(model).__name__} has no value table: slots belong to a model with memory "
            "layers (triptych.models.remember.memory_lm)"
        )
    return tables


def _add_header(digest: Any, name: str, tensor: Tensor) -> None:
    digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())


def _add_bytes(digest: Any, tensor: Tensor) -> None:
    for chunk in tensor.reshape(-1).split(BYTES_PER_CHUNK // tensor.element_size()):
        digest.update(chunk.cpu().contiguous().view(torch.uint8).numpy())
