"""The reads of facts that were learned, kept so that later facts leave them alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch import Tensor

from triptych.models.remember.values.value_table import ValueTable
from triptych.models.tensor_file import load_tensors, save_tensors
from triptych.objectives.remember.protected_reads import ProtectedReads

# Shapes: (B, T) rows and tokens of a batch, N = B T, K slots that a token reads in all heads

FILE = "protected_reads.safetensors"
KIND = "protected reads"


class ReadProtection:
    """Protects the positions at which facts were learned, visit after visit.

    The positions of a visit are those that predict a labelled token. Their reads are kept from the
    visit's last step, and protected from the next visit on.

    A later visit to the same fact, as in a second pass or to correct its answer, meets the fact's
    own earlier reads and learns more slowly. Taking a fact back does not remove its reads.

    Args:
        tables: Value tables in `selected_rows` mode.
        strength: See `ProtectedReads`.
    """

    def __init__(self, tables: Sequence[ValueTable], strength: float) -> None:
        self.tables = tables
        self.strength = strength
        self.protected = [ProtectedReads(table.num_slots) for table in tables]
        self._visit: int | None = None
        self._current: list[tuple[Tensor, Tensor]] = []

    def note(self, trainer: Trainer, batch: dict[str, Any]) -> None:
        """Take the reads of a step; those of the visit before are protected from now on.

        Args:
            trainer: Of the run; all processes call this together.
            batch: The step's only batch, with `labels`, (B, T), and `visit`.

        Raises:
            ValueError: if the batch is none of a visit.
        """
        if not isinstance(batch, dict) or "visit" not in batch:
            raise ValueError(
                "SparseMemoryFinetuning.protection keeps what was learned visit by visit, but "
                "these batches belong to none: use "
                "triptych.datamodules.remember.facts.fact_stream.FactStream, or leave it out"
            )
        visit = int(batch["visit"])
        if visit != self._visit:
            self._close()
        self._visit = visit
        self._current = [
            _gathered(trainer, *_learned_reads(table, batch["labels"])) for table in self.tables
        ]

    def constrained(self, number: int, rows_U: Tensor, change_UD: Tensor) -> Tensor:
        """Return what is left of a change of rows of a table; see `ProtectedReads`."""
        return self.protected[number].constrained(rows_U, change_UD, self.strength)

    def save(self, path: Path) -> None:
        """Write all reads, those of the current visit included, to a file."""
        save_tensors(path, self.state_dict()["tensors"], {"kind": KIND, **self._sizes()})

    def load(self, path: Path) -> None:
        """Begin with the reads of a file that an earlier run has saved.

        Raises:
            ValueError: if it is damaged or of another memory.
        """
        tensors, description = load_tensors(path)
        sizes = {name: description.get(name) for name in self._sizes()}
        if description.get("kind") != KIND or sizes != self._sizes():
            raise ValueError(
                f"{path} holds no protected reads of this memory ({sizes} in place of "
                f"{self._sizes()}): delete it, and facts learned before are not protected"
            )
        self.load_state_dict({"tensors": tensors, "visit": None, "num_open": []})

    def state_dict(self) -> dict[str, Any]:
        """Return all reads, and the number of the visit that goes on."""
        tensors = {}
        for number, protected in enumerate(self.protected):
            whole = ProtectedReads(protected.num_slots)
            whole.load(protected.tensors())
            if self._current and len(self._current[number][0]):
                whole.add(*self._current[number])
            for name, tensor in whole.tensors().items():
                tensors[f"table_{number}.{name}"] = tensor.cpu()
        num_open = [len(ids) for ids, _ in self._current]
        return {"tensors": tensors, "visit": self._visit, "num_open": num_open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._visit, self._current = state["visit"], []
        for number, (table, protected) in enumerate(zip(self.tables, self.protected, strict=True)):
            ids, weights = (state["tensors"][f"table_{number}.{n}"] for n in ("ids", "weights"))
            num_closed = len(ids)
            if state["num_open"]:
                num_closed -= state["num_open"][number]
                device = table.weight.device
                current = ids[num_closed:].to(device), weights[num_closed:].to(device)
                self._current.append(current)
            protected.load({"ids": ids[:num_closed], "weights": weights[:num_closed]})

    def _close(self) -> None:
        """Protect the reads of the visit that is over."""
        for protected, (ids, weights) in zip(self.protected, self._current, strict=False):
            if len(ids):
                protected.add(ids, weights)
        self._current, self._visit = [], None

    def _sizes(self) -> dict[str, list[int]]:
        return {"num_slots": [table.num_slots for table in self.tables]}


def _learned_reads(table: ValueTable, labels_BT: Tensor) -> tuple[Tensor, Tensor]:
    """Return slots and weights, (P, K) each, of the positions that predict a labelled token."""
    predicts_BT = torch.zeros_like(labels_BT, dtype=torch.bool)
    predicts_BT[:, :-1] = labels_BT[:, 1:] >= 0
    place_N = predicts_BT.flatten()
    found = [reads for reads in table.reads if len(reads.ids_BK) == len(place_N)]
    if not found:
        raise ValueError(
            f"SparseMemoryFinetuning.protection: no memory layer read all {len(place_N)} positions "
            "of the batch, so the reads of its answers are not known: set protection to 0"
        )
    return (
        torch.cat([reads.ids_BK[place_N] for reads in found]),
        torch.cat([reads.weights_BK[place_N] for reads in found]),
    )


def _gathered(trainer: Trainer, ids: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Return the reads of all processes, in their order."""
    if trainer.world_size == 1:
        return ids, weights
    everyone: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(everyone, (ids.cpu(), weights.cpu()))
    kept = [(i, w) for i, w in everyone if len(i)] or everyone[:1]
    return (
        torch.cat([i for i, _ in kept]).to(ids.device),
        torch.cat([w for _, w in kept]).to(weights.device),
    )
