"""The base of all language-model data: one tokenizer, packed rows, resumable batches."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import NonNegativeInt, PositiveInt
from lightning.pytorch import LightningDataModule
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.evaluation_loader import Evaluation, EvaluationLoader
from triptych.datamodules.batches.packing import Document, collate_padded, collate_rows
from triptych.datamodules.batches.resumable_loader import ResumableLoader, Shard
from triptych.datamodules.batches.row_stream import MixtureStream, PlannedRow, RowStream
from triptych.datamodules.batches.tokenizer import (
    TokenizerConfig,
    build_tokenizer,
    share_bytes,
    token_num_bytes,
)
from triptych.datamodules.sources.data_paths import data_path
from triptych.datamodules.sources.records import RecordSource
from triptych.models.disk_cache import default_cache_dir


@dataclass(frozen=True)
class RowFormat:
    """Tokenizer and layout, to turn text into rows and rows into batches.

    Args:
        tokenizer: The run's tokenizer.
        context_length: T.
        seed: Seed of shuffles and of drawn wordings.
        cache_dir: Folder of cached, tokenised text.
        source_id: Index of the part's source in the datamodule's `source_names`.
    """

    tokenizer: PreTrainedTokenizerFast
    context_length: int
    seed: int
    cache_dir: Path
    source_id: int = 0

    @cached_property
    def token_num_bytes(self) -> np.ndarray:
        """UTF-8 bytes per token, int32 (V,)."""
        return token_num_bytes(self.tokenizer)

    def collate_packed(self, rows: Sequence[PlannedRow]) -> dict[str, Any]:
        """Make a batch of packed rows (see `packing.collate_rows`)."""
        source_ids = [row.source_id for row in rows]
        return collate_rows([row.segments() for row in rows], source_ids, **self._layout)

    def collate_padded(self, documents: Sequence[Document]) -> dict[str, Any]:
        """Make a batch of one document a row (see `packing.collate_padded`)."""
        return collate_padded(documents, [self.source_id] * len(documents), **self._layout)

    @property
    def _layout(self) -> dict[str, Any]:
        return {
            "context_length": self.context_length,
            "pad_id": self.tokenizer.pad_token_id,
            "token_num_bytes": self.token_num_bytes,
        }


class DataPart(ABC):
    """One family of data within a datamodule: its sources, training rows and validation sets.

    A part is made from its settings alone and reads its sources lazily, so that a datamodule is
    constructed quickly. `TextPart` is the simplest example.

    Attributes:
        name: The entry in `source_names`, such as "text" or "facts".
        chat_template: The form in which the part asks the model, as a chat template; None: it asks
            nothing.
    """

    name: str
    chat_template: str | None = None

    def asked_in(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """Return the chat template in which the part asks with a tokenizer; None: its own."""
        return self.chat_template

    @abstractmethod
    def fingerprint(self) -> str:
        """Hash the contents of the training sources and the settings that determine the rows.

        Validation sources are left out: a checkpoint may continue with other validation sets.
        """

    @abstractmethod
    def tokenizer_texts(self) -> Iterator[str]:
        """Yield the texts to train a tokenizer on: training texts, no validation texts."""

    @abstractmethod
    def train_stream(self, row_format: RowFormat) -> RowStream[Any]:
        """Return the training rows: `EpochStream(source, seed, context_length)` for most."""

    @abstractmethod
    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return the validation sets."""


class PackedDataModule(LightningDataModule):
    """Packed, resumable, shardable batches from one or several parts.

    A subclass makes its parts from its settings and passes them on, with the settings of this class
    as `**kwargs`. An epoch is one pass over the first part, or `rows_per_epoch` rows. The next
    epoch continues from there, and no row is dropped between them.

    Args:
        parts: The families of data.
        shares: Share of the training rows for each part, adding up to 1.
        tokenizer: The tokenizer of all parts. A model that the run starts from (`init_from`) brings
            its own.
        context_length: Tokens per row.
        batch_size: Training rows per process and batch.
        eval_batch_size: Validation rows per process and batch; null: as `batch_size`.
        rows_per_epoch: Rows of all processes after which an epoch ends; null: one pass over the
            first part.
        num_workers: Worker processes that make training batches; 0: the training process does.
        seed: Seed of shuffles, of the mixture and of everything drawn anew in each epoch.
        cache_dir: Folder of cached tokenizers and prepared data; null: `TRIPTYCH_CACHE` or
            ~/.cache/triptych.
    """

    def __init__(
        self,
        parts: Sequence[DataPart],
        shares: Sequence[float],
        *,
        tokenizer: TokenizerConfig = TokenizerConfig(),  # noqa: B008 (frozen)
        context_length: PositiveInt = 256,
        batch_size: PositiveInt = 16,
        eval_batch_size: PositiveInt | None = None,
        rows_per_epoch: PositiveInt | None = None,
        num_workers: NonNegativeInt = 0,
        seed: NonNegativeInt = 0,
        cache_dir: str | None = None,
    ) -> None:
        super().__init__()
        self.parts = list(parts)
        self.shares = list(shares)
        self.context_length = context_length
        self.batch_size = batch_size
        self.eval_batch_size = batch_size if eval_batch_size is None else eval_batch_size
        self.rows_per_epoch = rows_per_epoch
        self.num_workers = num_workers
        self.seed = seed
        self.cache_dir = Path(cache_dir) if cache_dir else default_cache_dir()
        self._tokenizer_config = tokenizer

    @property
    def source_names(self) -> list[str]:
        """Names of the parts, which `source_ids` in a batch index."""
        return [part.name for part in self.parts]

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        """The tokenizer, trained or loaded on first use."""
        return build_tokenizer(
            self._tokenizer_config,
            lambda: share_bytes([part.tokenizer_texts() for part in self.parts]),
            self._parts_fingerprint,
            self.cache_dir,
        )

    def shares_of_rows(self) -> list[float]:
        """Return the share of the training rows for each part, adding up to 1."""
        return self.shares

    @property
    def chat_template(self) -> str | None:
        """The form in which the data ask the model: that of the first part that asks."""
        forms = (part.asked_in(self.tokenizer) for part in self.parts)
        return next((form for form in forms if form is not None), None)

    @property
    def vocab_size(self) -> int:
        """Number of token ids, special tokens included."""
        return len(self.tokenizer)

    def fingerprint(self) -> str:
        """Hash everything that determines the rows: contents, tokenizer, settings (sha256)."""
        tokenizer = self.tokenizer.backend_tokenizer.to_str()
        settings: list[Any] = [self.shares, self.context_length, self.seed, tokenizer]
        form = self._tokenizer_config.chat_form
        settings += [asdict(form)] if form else []
        return _hash([self._parts_fingerprint, *settings])

    def prepare_data(self) -> None:
        """Build the cached files, once per machine."""
        for part, row_format in zip(self.parts, self._row_formats(), strict=True):
            part.train_stream(row_format)
            part.evaluations(row_format)

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches."""
        row_formats = self._row_formats()
        streams = [p.train_stream(f) for p, f in zip(self.parts, row_formats, strict=True)]
        stream = MixtureStream(streams, self.shares_of_rows(), self.seed)
        rows_per_epoch = self.rows_per_epoch
        if rows_per_epoch is None and (rows_per_epoch := stream.num_rows()) is None:
            raise ValueError(
                "the length of a streamed source is unknown: set data.rows_per_epoch to the number "
                "of rows after which an epoch should end"
            )
        return ResumableLoader(
            stream,
            row_formats[0].collate_packed,
            batch_size=self.batch_size,
            rows_per_epoch=rows_per_epoch,
            shard=self._shard,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> Sequence[EvaluationLoader]:
        """Return one loader for each validation set of each part.

        Raises:
            ValueError: if two of them have the same name.
        """
        evaluations = [
            evaluation
            for part, row_format in zip(self.parts, self._row_formats(), strict=True)
            for evaluation in part.evaluations(row_format)
        ]
        names = [evaluation.name for evaluation in evaluations]
        if len(set(names)) < len(names):
            raise ValueError(
                f"the validation sets are named {', '.join(names)}, but names of log keys must "
                "differ: rename one in text.validation"
            )
        return [EvaluationLoader(e, self.eval_batch_size, self._shard) for e in evaluations]

    def state_dict(self) -> dict[str, Any]:
        """Return the tokenizer and the data's fingerprint, for the checkpoint."""
        return {
            "tokenizer": self.tokenizer.backend_tokenizer.to_str(),
            "fingerprint": self.fingerprint(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Refuse a checkpoint that was trained with another tokenizer or on other data.

        Other data is refused in training only: a checkpoint may be validated on any data.

        Raises:
            ValueError: if the tokenizer or the data differs.
        """
        path = getattr(self.trainer, "ckpt_path", None)
        checkpoint = f"the checkpoint {path}" if path else "the checkpoint"
        if state_dict["tokenizer"] != self.tokenizer.backend_tokenizer.to_str():
            raise ValueError(
                f"{checkpoint} was trained with another tokenizer than this run's "
                f"(tokenizer.path: {self._tokenizer_config.path!r}, {self.vocab_size} entries): "
                "use the data settings of the checkpoint's config.yaml, or give its exported "
                "folder as tokenizer.path"
            )
        fits = self.trainer is None or self.trainer.state.fn == "fit"
        if fits and state_dict["fingerprint"] != self.fingerprint():
            raise ValueError(
                f"{checkpoint} was trained on other data than this run's, or with another "
                "context_length, seed or mixture, so it cannot continue where it stopped: use the "
                "data settings of the checkpoint's config.yaml, or start a new run from the "
                "exported model"
            )

    @cached_property
    def _parts_fingerprint(self) -> str:
        return _hash([part.fingerprint() for part in self.parts])

    @property
    def _shard(self) -> Shard:
        if self.trainer is None:
            return Shard()
        return Shard(self.trainer.global_rank, self.trainer.world_size)

    def _row_formats(self) -> list[RowFormat]:
        return [
            RowFormat(self.tokenizer, self.context_length, self.seed, self.cache_dir, source_id)
            for source_id in range(len(self.parts))
        ]


def locate(source: RecordSource, data_dir: str | None) -> RecordSource:
    """Resolve a source's relative paths and patterns by `data_path`."""
    if source.is_embedded or source.hub_name:
        return source
    paths = [source.path] if isinstance(source.path, str) else source.path
    return replace(source, path=[data_path(path, data_dir) for path in paths])


def _hash(values: list[Any]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()
