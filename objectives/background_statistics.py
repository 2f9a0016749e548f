"""Background statistics: how ordinary text reads a model's memory, kept beside the model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from objectives.slot_scores import TableStatistics

BACKGROUND_FILE = "background.safetensors"


@dataclass(frozen=True, eq=False)
class BackgroundStatistics:
    """Reads of every value table over a number of background documents."""

    tables: tuple[TableStatistics, ...]
    num_tokens: int
    rows_per_document: int
    tokens_per_row: int
    tokenizer_fingerprint: str
    index_fingerprint: str

    @property
    def num_documents(self) -> int:
        """|B|."""
        return self.tables[0].num_documents

    def save(self, path: str | Path) -> None:
        """Write a safetensors file."""
        raise NotImplementedError

    @classmethod
    def load(cls, path: str | Path) -> "BackgroundStatistics":
        """Read what `save` wrote; raises ValueError saying what to do."""
        raise NotImplementedError

    def merge(self, other: "BackgroundStatistics") -> "BackgroundStatistics":
        """Add the statistics of further documents."""
        raise NotImplementedError

    def check(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        """Refuse statistics of another model or tokenizer (ValueError saying what to do)."""
        raise NotImplementedError


class BackgroundCollector:
    """Streams documents through a model and counts its reads."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
        self.model = model
        self.tokenizer = tokenizer

    def add_document(self, batch: dict[str, Any]) -> None:
        """Count the reads of one document."""
        raise NotImplementedError

    def statistics(self) -> BackgroundStatistics:
        """What was counted."""
        raise NotImplementedError
