"""From documents to rows of one context length: cut, pack, collate.

1. A `DocumentSource` returns token sequences `[BOS] text [EOS]`, each a pure function of
   (seed, epoch, index).
2. `window_bounds` cuts those longer than T into windows that overlap by one token, so every token
   except the first is predicted exactly once.
3. `pack_epoch` shuffles the windows and packs them into rows of at most T tokens (best fit).
4. `collate_rows` lays rows out as tensors; tokens attend only within their segment.

Shapes: B rows, T context length, N documents, S segments (windows), V vocabulary.
"""

from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

IGNORED_LABEL = -100
# Rows kept open while packing. More rows need less padding; 256 leave under 2% on mixed lengths.
MAX_OPEN_ROWS = 256


@dataclass(frozen=True, slots=True)
class Document:
    """A token sequence with its labels.

    Args:
        ids: Token ids, (length,), `[BOS] ... [EOS]` for a whole document.
        labels: Aligned with `ids` (not shifted), (length,); -100 where there is no loss.
    """

    ids: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.ids)

    def window(self, start: int, stop: int) -> "Document":
        """Cut out tokens `start:stop`; the first one is context only, so its label is -100."""
        labels = self.labels[start:stop].astype(np.int64)
        labels[:1] = IGNORED_LABEL
        return Document(self.ids[start:stop], labels)


class DocumentSource(ABC):
    """A finite set of documents, which may differ between epochs.

    `document(index, epoch)` must be a pure function of (the source's seed, epoch, index): resuming
    and data-parallel training rely on it. Sources are sent to loader workers, so they must pickle.

    Attributes:
        name: Short name for logs and errors, such as "text".
        splittable: Whether a document longer than the context may be cut into windows. If not
            (an answer would lose its question), such a document is an error.
    """

    name: str
    splittable: bool = True

    @abstractmethod
    def __len__(self) -> int:
        """Count the documents."""

    @abstractmethod
    def document(self, index: int, epoch: int) -> Document:
        """Return document `index` (0 <= index < len(self)) of `epoch`."""

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of tokens of every document in `epoch`, int64 (N,).

        Override where the lengths are known without reading every document.
        """
        return np.fromiter((len(self.document(i, epoch)) for i in range(len(self))), np.int64)


def window_bounds(
    lengths_N: np.ndarray, context_length: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Cut documents into windows of at most T tokens that overlap by one token.

    The last token of a window is the first of the next, where it is context only: a document of L
    tokens has L - 1 predicted tokens, before and after cutting.

    Args:
        lengths_N: Tokens per document, each at least 2.
        context_length: T, at least 2.

    Returns:
        documents_S, starts_S, stops_S: int64; window s holds tokens start:stop of its document.

    >>> [bounds.tolist() for bounds in window_bounds(np.array([3, 8]), 4)]
    [[0, 1, 1, 1], [0, 0, 3, 6], [3, 4, 7, 8]]
    """
    stride = context_length - 1
    windows_N = np.maximum(1, -(-(lengths_N - 1) // stride))
    documents_S = np.repeat(np.arange(len(lengths_N)), windows_N)
    first_N = np.cumsum(windows_N) - windows_N
    starts_S = (np.arange(len(documents_S)) - first_N[documents_S]) * stride
    stops_S = np.minimum(starts_S + context_length, lengths_N[documents_S])
    return documents_S, starts_S, stops_S


def split_long(document: Document, context_length: int) -> list[Document]:
    """Cut one document into windows of at most `context_length` tokens (see `window_bounds`)."""
    _, starts, stops = window_bounds(np.array([len(document)]), context_length)
    return [document.window(start, stop) for start, stop in zip(starts, stops, strict=True)]


def best_fit(sizes_S: np.ndarray, capacity: int) -> np.ndarray:
    """Assign each segment, in order, to the open row that it fills best.

    Args:
        sizes_S: Segment sizes, from 2 to `capacity`.
        capacity: Tokens per row.

    Returns:
        rows_S: int64; rows are numbered in the order they were opened.

    >>> best_fit(np.array([4, 3, 2, 2]), 6).tolist()
    [0, 1, 0, 1]
    """
    rows_S = np.empty(len(sizes_S), dtype=np.int64)
    open_rows: list[tuple[int, int]] = []  # (room left, row), the fullest first
    num_rows = 0
    for segment, size in enumerate(sizes_S.tolist()):
        place = bisect_left(open_rows, (size, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            room, row = capacity, num_rows
            num_rows += 1
        rows_S[segment] = row
        if room - size > 1:  # a segment has at least two tokens
            insort(open_rows, (room - size, row))
            if len(open_rows) > MAX_OPEN_ROWS:
                open_rows.pop(0)
    return rows_S


@dataclass(frozen=True)
class PackedRows:
    """One epoch of a source, planned as rows; documents are read with their row.

    Args:
        source: The source of the documents.
        epoch: The epoch of the documents.
        documents_S: Document of each segment, grouped by row.
        starts_S: First token of each segment in its document.
        stops_S: One past its last token.
        row_bounds: Row r holds segments row_bounds[r]:row_bounds[r + 1], (rows + 1,).
    """

    source: DocumentSource
    epoch: int
    documents_S: np.ndarray
    starts_S: np.ndarray
    stops_S: np.ndarray
    row_bounds: np.ndarray

    def __len__(self) -> int:
        return len(self.row_bounds) - 1

    @property
    def num_tokens(self) -> int:
        """Tokens in all rows, without padding."""
        return int((self.stops_S - self.starts_S).sum())

    def row(self, index: int) -> list[Document]:
        """Return the segments of row `index`, at most T tokens in all."""
        segments = range(self.row_bounds[index], self.row_bounds[index + 1])
        return [
            self.source.document(int(self.documents_S[s]), self.epoch).window(
                int(self.starts_S[s]), int(self.stops_S[s])
            )
            for s in segments
        ]


def pack_epoch(
    source: DocumentSource, epoch: int, seed: int | Sequence[int], context_length: int
) -> PackedRows:
    """Plan one epoch of a source as rows of at most `context_length` tokens.

    Windows are shuffled by (seed, epoch) before they are packed, so the windows of a long document
    get into different rows and batches. Every window is in exactly one row.

    Args:
        source: The documents.
        epoch: Passed to the source and to the shuffle.
        seed: Any non-negative integer, or several.
        context_length: T, at least 2.

    Raises:
        ValueError: if the source is empty, or a document is longer than the context and may not be
            cut.
    """
    if context_length < 2:
        raise ValueError(
            f"context_length is {context_length}, but a row needs at least 2 tokens "
            "(one to read, one to predict): set a larger context_length"
        )
    if len(source) == 0:
        raise ValueError(f"the source {source.name!r} has no documents to train or evaluate on")
    lengths_N = source.lengths(epoch)
    longest = int(lengths_N.argmax())
    if not source.splittable and lengths_N[longest] > context_length:
        raise ValueError(
            f"document {longest} of {source.name!r} has {lengths_N[longest]} tokens and may not be "
            f"cut, but context_length is {context_length}: set context_length to at least "
            f"{lengths_N[longest]}"
        )
    documents_S, starts_S, stops_S = window_bounds(lengths_N, context_length)
    entropy = [seed] if isinstance(seed, int) else list(seed)
    order_S = np.random.default_rng([*entropy, epoch]).permutation(len(documents_S))
    rows_S = best_fit((stops_S - starts_S)[order_S], context_length)
    order_S = order_S[np.argsort(rows_S, kind="stable")]
    row_bounds = np.concatenate([[0], np.cumsum(np.bincount(rows_S))])
    return PackedRows(
        source, epoch, documents_S[order_S], starts_S[order_S], stops_S[order_S], row_bounds
    )


def collate_rows(
    rows: Sequence[Sequence[Document]],
    source_ids: Sequence[int],
    *,
    context_length: int,
    pad_id: int,
    token_num_bytes: np.ndarray,
) -> dict[str, torch.Tensor]:
    """Lay rows of segments out as a batch.

    Args:
        rows: B rows, each a list of segments with at most T tokens in all.
        source_ids: Index of each row's source in the datamodule's `source_names`, (B,).
        context_length: T.
        pad_id: Fills `input_ids` after the last segment.
        token_num_bytes: UTF-8 bytes of each token, (V,); 0 for special tokens.

    Returns:
        A dictionary of tensors:

        - ``input_ids`` int64 (B, T).
        - ``labels`` int64 (B, T): aligned with ``input_ids``; -100 where there is no loss, which
          includes the first token of every segment and padding.
        - ``position_ids`` int64 (B, T): from 0 in each segment.
        - ``segment_ids`` int64 (B, T): from 1 in each row, 0 for padding.
        - ``num_bytes`` int32 (B, T): bytes of text per token; sum those with a label for bits per
          byte.
        - ``source_ids`` int64 (B,).
    """
    shape = (len(rows), context_length)
    input_ids = np.full(shape, pad_id, dtype=np.int64)
    labels = np.full(shape, IGNORED_LABEL, dtype=np.int64)
    position_ids = np.zeros(shape, dtype=np.int64)
    segment_ids = np.zeros(shape, dtype=np.int64)
    for row, segments in enumerate(rows):
        start = 0
        for number, segment in enumerate(segments, start=1):
            stop = start + len(segment)
            input_ids[row, start:stop] = segment.ids
            labels[row, start + 1 : stop] = segment.labels[1:]
            position_ids[row, start:stop] = np.arange(len(segment))
            segment_ids[row, start:stop] = number
            start = stop
    num_bytes = np.where(segment_ids > 0, token_num_bytes[input_ids], 0).astype(np.int32)
    return {
        "input_ids": torch.from_numpy(input_ids),
        "labels": torch.from_numpy(labels),
        "position_ids": torch.from_numpy(position_ids),
        "segment_ids": torch.from_numpy(segment_ids),
        "num_bytes": torch.from_numpy(num_bytes),
        "source_ids": torch.tensor(source_ids, dtype=torch.int64),
    }


def collate_padded(
    documents: Sequence[Document],
    source_ids: Sequence[int],
    *,
    context_length: int,
    pad_id: int,
    token_num_bytes: np.ndarray,
) -> dict[str, torch.Tensor]:
    """Lay documents out, one a row, right-padded to the longest.

    Arguments and result are those of `collate_rows`, with T the longest document.

    Raises:
        ValueError: if a document is longer than `context_length`.
    """
    longest = max(len(document) for document in documents)
    if longest > context_length:
        raise ValueError(
            f"a document of {longest} tokens does not fit in one row of context_length "
            f"{context_length}: set context_length to at least {longest}"
        )
    return collate_rows(
        [[document] for document in documents],
        source_ids,
        context_length=longest,
        pad_id=pad_id,
        token_num_bytes=token_num_bytes,
    )
