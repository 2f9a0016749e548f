"""A change of some slots in a file, which can be applied to a model and reverted.

A fact taught by sparse memory finetuning is a few hundred rows of the value tables: about 2 MB at
the paper's size (500 rows, 1,024 wide, bfloat16, before and after).
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import torch
from torch import Tensor, nn

from triptych.models.remember.ledger.base_fingerprint import (
    BYTES_PER_CHUNK,
    BaseFingerprint,
    values_fingerprint,
)
from triptych.models.remember.ledger.delta_hub import (
    CARD_FILE,
    DELTA_FILE,
    delta_card,
    delta_file,
    push_folder,
)
from triptych.models.remember.ledger.fact_texts import FactText, sentence_of
from triptych.models.remember.ledger.row_changes import (
    Elsewhere,
    RowChange,
    difference,
    moved,
    same_bits,
)
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.values.value_table import ValueTable
from triptych.models.tensor_file import load_tensors, save_tensors

# Shapes: D value width, S slots, U rows
FORMAT = "slot delta 1"
SharedRows = Literal["subtract", "keep"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """The result of moving the rows of a delta.

    Attributes:
        exact: For each table, rows that now hold the intended values to the bit.
        shared: For each table, rows that other deltas wrote in the meantime.
        kept: Whether the shared rows stayed the same, instead of a shift by the difference.
    """

    exact: tuple[Tensor, ...]
    shared: tuple[Tensor, ...]
    kept: bool

    @property
    def num_exact(self) -> int:
        """Number of rows set to the bit, over all tables."""
        return sum(rows.numel() for rows in self.exact)

    @property
    def num_shared(self) -> int:
        """Number of rows that other deltas wrote in the meantime, over all tables."""
        return sum(rows.numel() for rows in self.shared)

    def __str__(self) -> str:
        text = f"{self.num_exact:,} rows set to the bit"
        if not self.num_shared:
            return text
        done = "left as they are" if self.kept else "shifted by the difference, inexact"
        return f"{text}, {self.num_shared:,} rows that others wrote since {done}"


@dataclass(frozen=True, eq=False)
class SlotDelta:
    """Rows of a model's value tables before and after something was learned.

    Args:
        tables: A change for each of `value_tables(model)`, in their order.
        base: The model that the chain of deltas started from.
        facts: Ids of the learned facts.
        label: A note for readers.
        step: Number of optimizer steps at the end of the change.
        visit: Number of the visit to these facts in their stream.
        reverted: True for the remainder of a reverted delta: its rows that others wrote in the
            meantime.
        texts: What the facts say, by id, as plain types; see `fact_texts`.
        session: Number of the run that learned it, counted from the base; the first is 1.
    """

    tables: tuple[RowChange, ...]
    base: BaseFingerprint
    facts: tuple[str, ...] = ()
    label: str = ""
    step: int = 0
    visit: int | None = None
    reverted: bool = False
    texts: Mapping[str, FactText] = field(default_factory=dict)
    session: int = 1

    @property
    def num_rows(self) -> int:
        """Number of changed rows, over all tables."""
        return sum(len(table) for table in self.tables)

    @property
    def name(self) -> str:
        """Name for messages."""
        facts = ", ".join(self.facts[:3]) + (", ..." if len(self.facts) > 3 else "")
        return f"the delta of {facts or self.label or f'step {self.step}'}"

    def inverse(self) -> "SlotDelta":
        """Return the delta from after to before."""
        return replace(self, tables=tuple(table.inverse() for table in self.tables))

    # -- files ------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> None:
        """Write a safetensors file atomically."""
        tensors: dict[str, Tensor] = {}
        for number, table in enumerate(self.tables):
            tensors[f"table_{number}.rows"] = table.rows_U
            tensors[f"table_{number}.old"] = table.old_UD
            tensors[f"table_{number}.new"] = table.new_UD
        fields = ("label", "step", "visit", "reverted", "texts", "session")
        description: dict[str, Any] = {name: getattr(self, name) for name in fields}
        description |= {"facts": list(self.facts), "base": asdict(self.base), "format": FORMAT}
        save_tensors(path, tensors, description | {"num_tables": len(self.tables)})

    @classmethod
    def load(cls, path: str | Path) -> "SlotDelta":
        """Read a file of `save` and verify it.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if the file is cut short, damaged or of another kind.
        """
        tensors, description = load_tensors(path)
        if description.pop("format", None) != FORMAT:
            raise ValueError(f"{path} is not a slot delta: give an entry_*.safetensors of a ledger")
        parts = ("rows", "old", "new")
        try:
            tables = tuple(
                RowChange(*(tensors[f"table_{number}.{part}"] for part in parts))
                for number in range(description.pop("num_tables"))
            )
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
        description["facts"] = tuple(description["facts"])
        return cls(tables, BaseFingerprint(**description.pop("base")), **description)

    def save_pretrained(self, folder: str | Path, name: str | None = None) -> None:
        """Write the delta into a folder, with a card that says how to apply it.

        Args:
            folder: The folder; it is created if missing.
            name: Name of the folder in the card; None: the folder itself.
        """
        folder = Path(folder)
        self.save(folder / DELTA_FILE)
        tables = "one table" if len(self.tables) == 1 else f"{len(self.tables)} tables"
        summary = f"{self.num_rows:,} rows of {tables}, before and after learning"
        summary += f" ({self.label})." if self.label else "."
        facts = tuple(sentence_of(self.texts.get(fact)) or fact for fact in self.facts)
        card = delta_card(name or str(folder), summary, facts, self.base.around)
        card.save(folder / CARD_FILE)

    @classmethod
    def from_pretrained(
        cls, source: str | Path, file: str | None = None, revision: str | None = None
    ) -> "SlotDelta":
        """Read a delta from a folder, or from the Hugging Face hub.

        No code is loaded with it, and `apply` refuses a model that it was not made for.

        Args:
            source: A folder of `save_pretrained`, a ledger's folder, or a name on the hub.
            file: Path of the file in it, such as `entry_000003.safetensors`; None: the folder's
                only delta.
            revision: Commit, tag or branch on the hub; None: the newest.

        Raises:
            FileNotFoundError: if the folder has no such file.
            ValueError: if the folder has several entries, the hub gives no such file, or the file
                is damaged.
        """
        return cls.load(delta_file(source, file, revision))

    def push_to_hub(self, name: str, private: bool = False) -> str:
        """Upload the delta to the Hugging Face hub, with a card; `hf auth login` comes first.

        The facts' ids and texts stand in file and card.

        Args:
            name: `owner/name`, or `name` for the owner of the token.
            private: Whether a new repository is private.

        Returns:
            Address of the commit.

        Raises:
            HfHubHTTPError: if the hub refuses.
        """
        with TemporaryDirectory(prefix="slot_delta_") as folder:
            self.save_pretrained(folder, name)
            return push_folder(folder, name, private)

    # -- models -----------------------------------------------------------------------------------

    def apply(self, model: nn.Module) -> Outcome:
        """Write the new values into a model.

        The rows must hold the old values, or the model must be the base. On the base, a delta from
        the middle of a chain adds its difference to the rows that earlier deltas wrote.

        Raises:
            ValueError: if the model is another one, or others wrote these rows.
        """
        self.base.require_around(model, self.name)
        present = self._present(model)
        num_other = sum(
            int((~same_bits(table.old_UD, now_UD)).sum())
            for table, now_UD in zip(self.tables, present, strict=True)
        )
        if num_other and values_fingerprint(model) != self.base.values:
            raise ValueError(
                f"{num_other} of the {self.num_rows} rows of {self.name} do not hold the values "
                "it was made on: other facts were written there, or it is in the model already. "
                "Apply it to the base; to have both, merge the two ledgers first (python train.py "
                "ledger merge) and apply the result to the base"
            )
        return self._move(model, present, "shift")

    def revert(self, model: nn.Module, shared_rows: SharedRows = "keep") -> Outcome:
        """Revert the change in a model.

        Rows that hold the new values get the old ones back to the bit. To remove a fact from a
        ledger of many, use `Ledger.revert_fact`.

        Args:
            model: A model that holds the change.
            shared_rows: Treatment of rows that others wrote in the meantime; see
                `Ledger.revert_entries`.

        Raises:
            ValueError: if the model is another one, or does not hold the change.
        """
        self.base.require_around(model, self.name)
        present = self._present(model)
        if self.num_rows and all(
            bool(same_bits(table.old_UD, now_UD).all())
            for table, now_UD in zip(self.tables, present, strict=True)
        ):
            raise ValueError(
                f"{self.name} is not in the model: its rows hold the values from before it. Give "
                "the model that learned it"
            )
        elsewhere: Elsewhere = "shift" if shared_rows == "subtract" else "stay"
        return self.inverse()._move(model, present, elsewhere)

    def _present(self, model: nn.Module) -> list[Tensor]:
        """Return the present values of the rows, on the CPU."""
        pairs = zip(value_tables(model), self.tables, strict=True)
        return [read_rows(table, change.rows_U) for table, change in pairs]

    def _move(self, model: nn.Module, present: list[Tensor], elsewhere: Elsewhere) -> Outcome:
        exact, shared = [], []
        for table, change, now_UD in zip(value_tables(model), self.tables, present, strict=True):
            values_UD, exact_U = moved(now_UD, change.old_UD, change.new_UD, elsewhere)
            write_rows(table, change.rows_U, values_UD)
            exact.append(change.rows_U[exact_U])
            shared.append(change.rows_U[~exact_U])
        return Outcome(tuple(exact), tuple(shared), kept=elsewhere == "stay")


def diff(a: nn.Module | SlotDelta, b: nn.Module | SlotDelta, label: str = "") -> SlotDelta:
    """Return the delta from `a` to `b`, exact to the bit.

    Args:
        a: A model, or a delta, which represents its base with the delta applied.
        b: Another model, or another delta.
        label: Label of the result.

    Raises:
        ValueError: if more than the values of slots differ, or the deltas have different bases.
    """
    if isinstance(a, SlotDelta) and isinstance(b, SlotDelta):
        require_same_base(a.base, b.base)
        tables = tuple(difference(x, y) for x, y in zip(a.tables, b.tables, strict=True))
        return SlotDelta(tables, a.base, label=label, step=max(a.step, b.step))
    if isinstance(a, SlotDelta) or isinstance(b, SlotDelta):
        raise ValueError("diff compares two models or two deltas, not one with the other")
    base = BaseFingerprint.of(a)
    base.require_around(b, "the first model")
    pairs = zip(value_tables(a), value_tables(b), strict=True)
    return SlotDelta(tuple(_table_difference(*pair) for pair in pairs), base, label=label)


def require_same_base(a: BaseFingerprint, b: BaseFingerprint) -> None:
    """Refuse two different bases.

    Raises:
        ValueError: if the bases differ.
    """
    if a == b:
        return
    what = "parameters around the value tables" if a.around != b.around else "values"
    raise ValueError(
        f"these were made on different bases ({what} differ): only runs that started from the same "
        "model (the same init_from) can be compared or merged"
    )


def read_rows(table: ValueTable, rows_U: Tensor) -> Tensor:
    """Copy rows of a table to the CPU."""
    return table.weight.detach()[rows_U.to(table.weight.device)].cpu()


@torch.no_grad()
def write_rows(table: ValueTable, rows_U: Tensor, values_UD: Tensor) -> None:
    """Set rows of a table on any device."""
    device = table.weight.device
    table.weight.data[rows_U.to(device)] = values_UD.to(device)


def _table_difference(a: ValueTable, b: ValueTable) -> RowChange:
    a_SD, b_SD = a.weight.detach(), b.weight.detach()
    rows_per_chunk = max(BYTES_PER_CHUNK // (a.value_dim * a_SD.element_size()), 1)
    found = [
        start + (~same_bits(x, y.to(x.device))).nonzero().reshape(-1)
        for start, x, y in zip(
            range(0, a.num_slots, rows_per_chunk),
            a_SD.split(rows_per_chunk),
            b_SD.split(rows_per_chunk),
            strict=True,
        )
    ]
    rows_U = torch.cat(found)
    return RowChange(rows_U.cpu(), a_SD[rows_U].cpu(), b_SD[rows_U.to(b_SD.device)].cpu())
