"""A stream of documents: chunk after chunk, each with its augmentations.

    rows with a field `text`, as chunks that fit the context            `documents`
      -> each with its augmentations                                    `augmentations`
      -> one visit a batch, padded and never packed                     `visits`

Sparse Memory Finetuning learns SimpleQA's documents this way (2510.15103, section 5): 1,824 chunks
in order, each batch 64 augmentations of one chunk.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveInt
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import RowFormat, locate
from triptych.datamodules.batches.packing import IGNORED_LABEL, Document
from triptych.datamodules.batches.tokenizer import document_start, encode_texts
from triptych.datamodules.batches.visit_datamodule import VisitDataModule, VisitedPart
from triptych.datamodules.batches.visits import VisitSource
from triptych.datamodules.embedded.articles import embedded_documents
from triptych.datamodules.remember.facts.fact_mentions import FactMentions
from triptych.datamodules.remember.facts.facts import FactsConfig, FactsPart
from triptych.datamodules.remember.text.augmentations import (
    Augmentations,
    AugmentationsConfig,
    Chunk,
)
from triptych.datamodules.remember.text.documents import (
    DocumentsConfig,
    cut_documents,
    read_documents,
)
from triptych.datamodules.sources.records import refuse_shared_files, source_fingerprint

VALIDATION_SEED = 0  # the validation chunks do not depend on the seed of training


class ChunkVisits(VisitSource):
    """Chunks with their augmentations as documents.

    An augmentation that is longer than the context is cut.

    Args:
        chunks: The chunks to teach.
        augmentations: Their augmentations.
        tokenizer: A tokenizer with BOS and EOS.
        context_length: T.
    """

    def __init__(
        self,
        chunks: Sequence[Chunk],
        augmentations: Augmentations,
        tokenizer: PreTrainedTokenizerFast,
        context_length: int,
    ) -> None:
        self.ids = [chunk.id for chunk in chunks]
        self._texts = [chunk.text for chunk in chunks]
        self._augmentations = augmentations
        self._tokenizer = tokenizer
        self._context_length = context_length

    def documents(self, index: int, pass_number: int) -> list[Document]:
        """Return the chunk and its augmentations in one pass."""
        texts = [self._texts[index], *self._augmentations.texts(index, pass_number)]
        return [self._document(ids) for ids in encode_texts(self._tokenizer, texts)]

    def chunk(self, index: int) -> Document:
        """Return the chunk alone."""
        return self._document(*encode_texts(self._tokenizer, [self._texts[index]]))

    def _document(self, ids: list[int]) -> Document:
        ids = ids[: self._context_length - 2]
        start = document_start(self._tokenizer)
        whole = np.array([*start, *ids, self._tokenizer.eos_token_id], np.int32)
        labels = whole.copy()
        labels[0] = IGNORED_LABEL
        return Document(whole, labels)


class DocumentStreamPart(VisitedPart[ChunkVisits]):
    """The documents, chunks and questions; arguments are those of `DocumentStream`."""

    name = "documents"

    def __init__(
        self,
        documents: DocumentsConfig,
        augmentations: AugmentationsConfig,
        questions: FactsConfig | None,
        chunks_per_batch: int,
        steps_per_visit: int,
        shuffle: bool,
        data_dir: str | None,
    ) -> None:
        super().__init__(chunks_per_batch, steps_per_visit, shuffle)
        if documents.only_about_questions and questions is None:
            raise ValueError(
                "documents.only_about_questions is true, but data.questions is null: choose "
                "there the facts that the documents are about"
            )
        self._config = documents
        self._source = locate(documents.source, data_dir)
        refuse_shared_files([self._source])
        self._augmentations = augmentations
        self._asked = FactsPart(questions, data_dir) if questions is not None else None
        self.chat_template = self._asked.chat_template if self._asked is not None else None

    def fingerprint(self) -> str:
        """Hash the documents, their augmentations and their order."""
        about = self._about()
        rows = source_fingerprint(self._source, embedded_documents)
        settings = [
            rows,
            about and about.fingerprint(),
            self._augmentations.fingerprint(),
            self.order,
        ]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield the documents, for a run that trains its tokenizer."""
        return (row["text"] for row in read_documents(self._source, self._about()))

    def make_visits(self, row_format: RowFormat) -> ChunkVisits:
        """Return the chunks with their documents."""
        kind = self._augmentations.source
        chunks = cut_documents(
            read_documents(self._source, self._about()),
            row_format,
            with_leads=kind == "templates",
            with_own=kind == "rows",
        )
        augmentations = Augmentations(
            self._augmentations, chunks, row_format.cache_dir, row_format.seed
        )
        return ChunkVisits(chunks, augmentations, row_format.tokenizer, row_format.context_length)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return the chunks as text, and the questions to ask."""
        visits = self.visits(row_format)
        indices = list(range(len(visits.ids)))
        most = self._config.validation_chunks
        if most is not None and most < len(indices):
            indices = sorted(random.Random(VALIDATION_SEED).sample(indices, most))

        def collate(rows: Sequence[int]) -> dict[str, Any]:
            return row_format.collate_padded([visits.chunk(indices[row]) for row in rows])

        evaluations = [Evaluation(self.name, len(indices), collate)]
        return evaluations + (self._asked.evaluations(row_format) if self._asked else [])

    def _about(self) -> FactMentions | None:
        if self._asked is None or not self._config.only_about_questions:
            return None
        return FactMentions(self._asked.facts)


class DocumentStream(VisitDataModule):
    """Documents one chunk after another, for a model that has learned other text before.

    Every batch is a visit to one chunk (or a few) with its augmentations, one a row, padded and
    never packed; all tokens have labels. An epoch is one pass over the chunks, so
    `trainer.max_epochs` is the number of passes. Validation measures the likelihood of the chunks
    (`val/documents/...`) and asks `questions` (`val/facts/...`).

    Several processes divide the texts of a visit among them. `context_length` bounds a chunk with
    its lead.

    Args:
        documents: The documents to teach.
        augmentations: Further texts with their content.
        questions: Facts to ask in validation, taught by the documents alone; null: none.
        chunks_per_batch: Chunks taught together in one batch of all processes.
        steps_per_visit: Consecutive batches that repeat the same chunks.
        shuffle: Whether the order is drawn by `seed`, anew for each pass; false: the source's.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        **kwargs: Further settings, those of `VisitDataModule`.
    """

    def __init__(
        self,
        documents: DocumentsConfig = DocumentsConfig(),  # noqa: B008 (frozen)
        augmentations: AugmentationsConfig = AugmentationsConfig(),  # noqa: B008 (frozen)
        questions: FactsConfig | None = None,
        chunks_per_batch: PositiveInt = 1,
        steps_per_visit: PositiveInt = 1,
        shuffle: bool = False,
        *,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        part = DocumentStreamPart(
            documents,
            augmentations,
            questions,
            chunks_per_batch,
            steps_per_visit,
            shuffle,
            data_dir,
        )
        super().__init__(part, **kwargs)
