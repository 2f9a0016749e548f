"""Documents to teach: rows with a field `text`, cut into chunks that fit the context."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from jsonargparse.typing import PositiveInt

from triptych.datamodules.batches.chunks import chunk_text
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.tokenizer import encode_texts
from triptych.datamodules.embedded.articles import embedded_documents
from triptych.datamodules.remember.facts.fact_mentions import FactMentions
from triptych.datamodules.remember.text.augmentations import Chunk, longest_lead
from triptych.datamodules.sources.records import RecordSource, describe, read_records


@dataclass(frozen=True)
class DocumentsConfig:
    """Choice of the documents to teach.

    Args:
        source: Rows with `text`, and perhaps `id`, `title`, and `augmentations` (a list of texts
            with the same content). The embedded default is an article on each country, element, US
            state and book.
        only_about_questions: Use only documents that contain the subject and an answer of one of
            the facts in `questions`.
        validation_chunks: Maximum number of chunks with measured likelihood, the same random ones
            each time; null: all.
    """

    source: RecordSource = field(default_factory=RecordSource)
    only_about_questions: bool = False
    validation_chunks: PositiveInt | None = 256


def read_documents(source: RecordSource, about: FactMentions | None = None) -> list[dict[str, Any]]:
    """Read documents; those without an id are numbered.

    Args:
        source: The source.
        about: Keep only documents that mention these facts; None: all.

    Returns:
        Rows with `id`, `text`, `title` and `augmentations`; the latter two may be None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed, two have one id, or no document is left.
    """
    rows = read_records(
        source,
        required={"text": str},
        optional={"id": str, "title": str, "augmentations": list[str]},
        embedded=embedded_documents,
        row_check=lambda row: None if row["text"].strip() else "field 'text' is empty",
    )
    documents = [
        {**row, "id": row["id"] or f"row {number}"} for number, row in enumerate(rows, start=1)
    ]
    repeated = [name for name, count in Counter(r["id"] for r in documents).items() if count > 1]
    if repeated:
        raise ValueError(
            f"{describe(source)} has several documents with the id {repeated[0]!r}: give each a "
            "different id, or none"
        )
    if about is not None:
        documents = [row for row in documents if about.are_in(row["text"])]
        if not documents:
            raise ValueError(
                f"no document in {describe(source)} names the subject and an answer of one of the "
                "facts in data.questions: choose other facts, or set "
                "documents.only_about_questions to false"
            )
    return documents


def cut_documents(
    documents: Iterable[dict[str, Any]], row_format: RowFormat, with_leads: bool, with_own: bool
) -> list[Chunk]:
    """Cut documents into chunks.

    Args:
        documents: Rows of `read_documents`.
        row_format: Tokenizer and context length.
        with_leads: Whether to leave room for the leads of augmentations by templates.
        with_own: Whether the rows' augmentations are taught, and so must fit the context.

    Raises:
        ValueError: if the context is too short, or a row's augmentations do not fit its chunk.
    """
    chunks = []
    for row in documents:
        lead = longest_lead(row["title"]) if with_leads else ""
        texts = _cut(row, row_format, lead)
        augmentations = tuple(row["augmentations"] or ())
        if with_own:
            _check_augmentations(row["id"], texts, augmentations, row_format)
        for number, text in enumerate(texts, start=1):
            chunk_id = row["id"] if number == 1 else f"{row['id']}#{number}"
            chunks.append(Chunk(chunk_id, text, row["title"], augmentations))
    return chunks


def _cut(row: dict[str, Any], row_format: RowFormat, lead: str) -> list[str]:
    try:
        return chunk_text(row["text"], lambda text: _fits(lead + text, row_format))
    except ValueError as error:
        before = f" (its augmentations begin with {lead!r})" if lead else ""
        raise ValueError(
            f"context_length is {row_format.context_length}, too short for any of document "
            f"{row['id']!r}{before}: raise it"
        ) from error


def _fits(text: str, row_format: RowFormat) -> bool:
    """Return whether a text fits between BOS and EOS."""
    room = row_format.context_length - 2
    # A token has at least one byte, so only long texts need to be tokenised.
    return len(text.encode()) <= room or len(encode_texts(row_format.tokenizer, [text])[0]) <= room


def _check_augmentations(
    document: str, chunks: Sequence[str], augmentations: Sequence[str], row_format: RowFormat
) -> None:
    """Refuse augmentations that do not belong to one chunk, or do not fit the context."""
    if augmentations and len(chunks) > 1:
        raise ValueError(
            f"document {document!r} is cut into {len(chunks)} chunks, so its `augmentations` "
            "belong to none of them: give one chunk a row, or raise context_length"
        )
    for text in augmentations:
        if not _fits(text, row_format):
            raise ValueError(
                f"an augmentation of document {document!r} is longer than context_length "
                f"({row_format.context_length}): shorten it, or raise context_length. It begins "
                f"{text[:40]!r}"
            )
