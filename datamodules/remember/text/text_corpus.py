"""Running text as training data: books or articles; the embedded default is short articles.

    rows with a field `text`                              `records`
      -> [BOS] text [EOS], tokenised once and cached      `token_file`    (or `text_stream`)
      -> cut, shuffled and packed anew in each epoch      `packing`

The embedded articles are about countries, elements, US states and books.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

from jsonargparse.typing import PositiveInt

from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.packing import pack_epoch
from triptych.datamodules.batches.row_stream import EpochStream, PlannedRow, RowStream
from triptych.datamodules.batches.token_file import TokenFile, tokenised
from triptych.datamodules.embedded.articles import embedded_articles
from triptych.datamodules.remember.facts.fact_mentions import FactMentions
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.text_stream import StreamedText
from triptych.datamodules.sources.records import (
    EmbeddedRows,
    RecordSource,
    describe,
    refuse_shared_files,
    source_fingerprint,
    stream_records,
)

VALIDATION_SEED = 0  # validation rows do not depend on the seed of training


@dataclass(frozen=True)
class TextConfig:
    """Choice of the text to train and to validate on.

    Args:
        train: Training sources, read as one corpus. Rows need a field `text`; `columns` of a source
            renames fields.
        validation: Validation sources, by the name of their log keys; null: the validation split of
            the embedded articles, as `text`.
        streaming: Tokenise the training sources during training instead of before, for data too
            large for the disk. Texts are read in order, shuffled within `shuffle_buffer`, by at
            most one worker.
        shuffle_buffer: Number of texts that are shuffled and packed together when streaming.
        without_facts: Leave out the training texts that mention one of these facts (its subject and
            one of its answers), so that the facts are new to the model when they are taught. Null:
            train on all texts.
        max_validation_rows: Maximum number of rows to validate each source on, the same random ones
            each time; null: all.
    """

    train: list[RecordSource] = field(default_factory=lambda: [RecordSource()])
    # A default of None: the parser cannot write a dict of dataclasses back into YAML.
    validation: dict[str, RecordSource] | None = None
    streaming: bool = False
    shuffle_buffer: PositiveInt = 1000
    without_facts: FactsConfig | None = None
    max_validation_rows: PositiveInt | None = None


class TextPart(DataPart):
    """The text in a datamodule; a part of `TextCorpus` and of mixtures with text.

    Args:
        config: Choice of the text.
        data_dir: Folder of data; see `data_paths`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a file is given twice, or both trains and validates.
    """

    name = "text"

    def __init__(self, config: TextConfig, data_dir: str | None = None) -> None:
        if not config.train:
            raise ValueError("text.train names no source: give at least one")
        self.config = config
        self._train = [locate(source, data_dir) for source in config.train]
        validation = {"text": RecordSource()} if config.validation is None else config.validation
        self._validation = {name: locate(source, data_dir) for name, source in validation.items()}
        refuse_shared_files(self._train, self._validation.values())
        left_out = config.without_facts
        self._left_out = FactsPart(left_out, data_dir) if left_out is not None else None

    @cached_property
    def _mentions(self) -> FactMentions | None:
        """Detector of the facts that must not be in the training texts."""
        return FactMentions(self._left_out.facts) if self._left_out is not None else None

    def fingerprint(self) -> str:
        """Hash the training texts and how they are streamed."""
        sources = [source_fingerprint(source, embedded_articles) for source in self._train]
        streamed = self.config.shuffle_buffer if self.config.streaming else None
        left_out = self._mentions.fingerprint() if self._mentions is not None else None
        settings = [sources, streamed, left_out]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield the training texts."""
        return _texts(self._train, embedded_articles, self._mentions)

    def train_stream(self, row_format: RowFormat) -> RowStream[PlannedRow]:
        """Return the training rows."""
        if self.config.streaming:
            return StreamedText(
                partial(_texts, self._train, embedded_articles, self._mentions),
                row_format.tokenizer,
                context_length=row_format.context_length,
                seed=row_format.seed,
                texts_per_block=self.config.shuffle_buffer,
                name=self.name,
            )
        corpus = _corpus(self.name, self._train, embedded_articles, row_format, self._mentions)
        return EpochStream(corpus, row_format.seed, row_format.context_length)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return one validation set for each source."""
        return [
            self._evaluation(name, source, row_format) for name, source in self._validation.items()
        ]

    def _evaluation(self, name: str, source: RecordSource, row_format: RowFormat) -> Evaluation:
        articles = partial(embedded_articles, "validation")
        corpus = _corpus(name, [source], articles, row_format)
        rows = pack_epoch(corpus, 0, VALIDATION_SEED, row_format.context_length)

        def collate(indices: Iterable[int]) -> dict[str, Any]:
            planned = [PlannedRow(rows, index, row_format.source_id) for index in indices]
            return row_format.collate_packed(planned)

        return Evaluation(
            name, min(len(rows), self.config.max_validation_rows or len(rows)), collate
        )


class TextCorpus(PackedDataModule):
    """Training and validation on running text alone.

    An epoch is one pass over the text; streamed text needs `rows_per_epoch`.

    Args:
        text: Choice of the text.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        **kwargs: Further settings, those of `PackedDataModule`.
    """

    def __init__(
        self,
        text: TextConfig = TextConfig(),
        *,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [TextPart(text, data_dir)],
            [1.0],
            **kwargs,
        )


def _texts(
    sources: Iterable[RecordSource], embedded: EmbeddedRows, left_out: FactMentions | None = None
) -> Iterator[str]:
    for source in sources:
        is_empty = True
        for row in stream_records(source, {"text": str}, embedded=embedded):
            is_empty = is_empty and not row["text"].strip()
            if left_out is None or not left_out.are_in(row["text"]):
                yield row["text"]
        if is_empty:
            raise ValueError(
                f"no text in {describe(source)}: it is empty or holds only white space; remove "
                "it, or give a source with at least one row of text"
            )


def _corpus(
    name: str,
    sources: list[RecordSource],
    embedded: EmbeddedRows,
    row_format: RowFormat,
    left_out: FactMentions | None = None,
) -> TokenFile:
    fingerprints = [source_fingerprint(source, embedded) for source in sources]
    if left_out is not None:
        fingerprints.append(left_out.fingerprint())
    return tokenised(
        _texts(sources, embedded, left_out),
        row_format.tokenizer,
        name=name,
        fingerprint="/".join(fingerprints),
        cache_dir=row_format.cache_dir,
    )
