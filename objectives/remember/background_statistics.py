"""Background statistics: the accesses of ordinary text to a model's memory, in a file beside it.

They are sums over parts of a corpus, over files, over ranks.

    background = BackgroundStatistics.load(folder / BACKGROUND_FILE)
    background.check(model, tokenizer)
    scores_S = slot_scores("tfidf", counts_S, background.tables[0])
"""

# Shapes: S slots of a table

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

from torch import nn
from transformers import PreTrainedTokenizerBase

from triptych.models.remember.ledger.base_fingerprint import around_fingerprint
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.values.value_table import ValueTable
from triptych.models.tensor_file import load_tensors, save_tensors
from triptych.objectives.remember.slot_scores import TableStatistics

BACKGROUND_FILE = "background.safetensors"
KIND = "background statistics"
COLLECT_ANEW = (
    "collect them anew: python train.py validate "
    "--config configs/remember/background_statistics.yaml --model.init_args.init_from FOLDER"
)
_SAME_IN_ALL_PARTS = (
    "tokenizer_fingerprint",
    "index_fingerprint",
    "rows_per_document",
    "tokens_per_row",
)
_DESCRIBED = ("num_tokens", *_SAME_IN_ALL_PARTS)


@dataclass(frozen=True, eq=False)
class BackgroundStatistics:
    """Accesses of a set of background documents to each value table of a model.

    Statistics are kept by table, not by layer. Where layers share a table, a slot's accesses are
    those of all these layers, and a document reads the slot if any of them does.

    The number of documents that read a slot grows with the document size. The size is therefore
    part of the statistics, and statistics of documents of different sizes cannot be merged.

    Attributes:
        tables: One for each table, in the order of `value_tables(model)`.
        num_tokens: Tokens in all documents, without padding.
        rows_per_document: Rows of a document, B.
        tokens_per_row: Positions of a row, T, padding included.
        tokenizer_fingerprint: See `tokenizer_fingerprint`.
        index_fingerprint: See `index_fingerprint`.
        value_scales: One for each table, see `ValueScales`; None in files made before it was
            measured.

    Source: 2510.15103, section 4: "documents" are random batches, statistics are static and stored
    with the model. Deviation: the paper does not give the size of its background batches.
    """

    tables: tuple[TableStatistics, ...]
    num_tokens: int
    rows_per_document: int
    tokens_per_row: int
    tokenizer_fingerprint: str
    index_fingerprint: str
    value_scales: tuple[float, ...] | None = None

    @property
    def num_documents(self) -> int:
        """|B|, the same for all tables."""
        return self.tables[0].num_documents

    def save(self, path: str | Path) -> None:
        """Write the statistics to a safetensors file, atomically."""
        tensors = {}
        for number, table in enumerate(self.tables):
            tensors[f"table_{number}.document_frequency"] = table.document_frequency_S
            tensors[f"table_{number}.counts"] = table.counts_S
        described = {name: getattr(self, name) for name in ("num_documents", *_DESCRIBED)}
        if self.value_scales is not None:
            described["value_scales"] = list(self.value_scales)
        save_tensors(path, tensors, {"kind": KIND, **described})

    @classmethod
    def load(cls, path: str | Path) -> "BackgroundStatistics":
        """Read a file of `save`; tensors are on the CPU.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is damaged or of another kind.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there are no background statistics {path}: {COLLECT_ANEW}")
        try:
            tensors, description = load_tensors(path)
        except ValueError as error:
            raise ValueError(f"{error}; or {COLLECT_ANEW}") from error
        if description.get("kind") != KIND:
            raise ValueError(f"{path} does not hold background statistics: {COLLECT_ANEW}")
        tables = tuple(
            TableStatistics(
                tensors[f"table_{number}.document_frequency"],
                tensors[f"table_{number}.counts"],
                description["num_documents"],
            )
            for number in range(len(tensors) // 2)
        )
        scales = description.get("value_scales")
        return cls(
            tables,
            **{name: description[name] for name in _DESCRIBED},
            value_scales=None if scales is None else tuple(scales),
        )

    def merge(self, other: "BackgroundStatistics") -> "BackgroundStatistics":
        """Add the statistics of further documents to these.

        Raises:
            ValueError: if model, tokenizer or document size differ.
        """
        for name in _SAME_IN_ALL_PARTS:
            mine, others = getattr(self, name), getattr(other, name)
            if mine != others:
                raise ValueError(
                    f"background statistics cannot be merged: {name} is {_short(mine)} in one and "
                    f"{_short(others)} in the other. To merge them, {COLLECT_ANEW}, for all parts "
                    "with the same model, tokenizer, rows_per_document and data.context_length"
                )
        tables = tuple(
            TableStatistics(
                mine.document_frequency_S + others.document_frequency_S,
                mine.counts_S + others.counts_S,
                mine.num_documents + others.num_documents,
            )
            for mine, others in zip(self.tables, other.tables, strict=True)
        )
        return BackgroundStatistics(
            tables,
            self.num_tokens + other.num_tokens,
            self.rows_per_document,
            self.tokens_per_row,
            self.tokenizer_fingerprint,
            self.index_fingerprint,
            self._merged_scales(other),
        )

    def _merged_scales(self, other: "BackgroundStatistics") -> tuple[float, ...] | None:
        """Return the geometric means, weighted by tokens; None if a part has none."""
        if self.value_scales is None or other.value_scales is None:
            return None
        share = self.num_tokens / max(1, self.num_tokens + other.num_tokens)
        pairs = zip(self.value_scales, other.value_scales, strict=True)
        return tuple(mine**share * others ** (1 - share) for mine, others in pairs)

    def check(self, model: nn.Module, tokenizer: PreTrainedTokenizerBase | None) -> None:
        """Check that the statistics belong to this model and this tokenizer.

        Args:
            model: A model with memory layers.
            tokenizer: The data's tokenizer; None if there is none.

        Raises:
            ValueError: if not, with the difference and the remedy.
        """
        held = [table.counts_S.numel() for table in self.tables]
        asked = [table.num_slots for table in tables_of(model)]
        if held != asked:
            raise ValueError(
                f"the background statistics are of value tables of {held} slots, but the model has "
                f"tables of {asked} slots: {COLLECT_ANEW}"
            )
        has_other = tokenizer is not None and (
            self.tokenizer_fingerprint != tokenizer_fingerprint(tokenizer)
        )
        if has_other:
            raise ValueError(
                "the background statistics were collected with another tokenizer than that of this "
                "run's data: use the model's own (data.init_args.tokenizer.path: FOLDER), or "
                f"{COLLECT_ANEW}"
            )
        if self.index_fingerprint != index_fingerprint(model):
            raise ValueError(
                "the background statistics are of another model, or of this one before something "
                "other than its values was trained, so that it reads other slots now: "
                f"{COLLECT_ANEW}"
            )


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """Hash everything that determines the ids of a text (sha256).

    Padding and truncation are left out, since they may change from call to call.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    settings = json.loads(backend.to_str()) if backend is not None else tokenizer.get_vocab()
    decisive = {name: settings[name] for name in settings if name not in ("padding", "truncation")}
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def index_fingerprint(model: nn.Module) -> str:
    """Hash everything that determines which slots a text reads, except the values (sha256).

    These are all parameters and buffers of the model outside of its value tables, bit by bit.
    Sparse memory finetuning only changes values, so the fingerprint does not change. Neither do the
    accesses, if there is one memory layer or only the highest one is finetuned. Otherwise values of
    lower layers influence the accesses of upper ones; the statistics of these then describe the
    model before finetuning, like the paper's static statistics.

    Args:
        model: A model with memory layers.
    """
    return around_fingerprint(model)


def tables_of(model: nn.Module) -> list[ValueTable]:
    """Return the value tables of a model.

    Raises:
        ValueError: if it has none.
    """
    tables = value_tables(model)
    if not tables:
        raise ValueError(
            "the model has no memory layers, so nothing can be known about what it reads: start "
            "from a memory model (configs/remember/pretrain.yaml trains one), or put memory into "
            "this one (`memory`)"
        )
    return tables


def _short(value: object) -> str:
    return f"{value[:12]}..." if isinstance(value, str) else str(value)
