"""Tokenised text on disk: one flat, memory-mapped file of token ids per corpus."""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.packing import Document, DocumentSource
from triptych.datamodules.batches.tokenizer import document_start, encode_texts
from triptych.models.disk_cache import build_once

TEXTS_PER_BATCH = 256
SILENT_SECONDS = 5.0


class TokenFile(DocumentSource):
    """Documents `[BOS] text [EOS]`, the same in every epoch, read from a folder on disk.

    The folder holds `ids.npy`, all documents end to end in the smallest integer type that fits the
    vocabulary, and `bounds.npy`, int64 (N + 1,): document i is ids[bounds[i]:bounds[i + 1]].

    Args:
        folder: Written by `write_token_file`.
        name: The source's name.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self.name = name
        self._folder = folder
        self._bounds = np.load(folder / "bounds.npy")
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")

    def __len__(self) -> int:
        return len(self._bounds) - 1

    def document(self, index: int, epoch: int) -> Document:
        """Return document `index`; every token except the first is predicted."""
        ids = self._ids[self._bounds[index] : self._bounds[index + 1]]
        return Document(ids, ids)

    def lengths(self, epoch: int) -> np.ndarray:
        """Return the number of tokens of every document, int64 (N,)."""
        return np.diff(self._bounds)

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self._folder, "name": self.name}  # a pickled memory map is a copy

    def __setstate__(self, state: dict[str, Any]) -> None:
        TokenFile.__init__(self, **state)


def tokenised(
    texts: Iterable[str],
    tokenizer: PreTrainedTokenizerFast,
    *,
    name: str,
    fingerprint: str,
    cache_dir: Path,
) -> TokenFile:
    """Tokenise texts, or return the cached result of this tokenizer.

    Args:
        texts: Read only if they are not cached. Texts of white space alone are left out.
        tokenizer: The tokenizer.
        name: The source's name, for errors and progress.
        fingerprint: Hash of the texts.
        cache_dir: Folder of cached token files.

    Raises:
        ValueError: if there is no text.
    """
    key = [fingerprint, tokenizer.backend_tokenizer.to_str(), tokenizer.all_special_ids]
    if (start := document_start(tokenizer)) != [tokenizer.bos_token_id]:
        key.append(start)
    digest = hashlib.sha256(json.dumps(key).encode()).hexdigest()[:16]
    folder = build_once(
        cache_dir / "tokens" / digest,
        lambda unfinished: write_token_file(unfinished, texts, tokenizer, name),
    )
    return TokenFile(folder, name)


def write_token_file(
    folder: Path, texts: Iterable[str], tokenizer: PreTrainedTokenizerFast, name: str
) -> None:
    """Write the files that `TokenFile` reads, in bounded memory.

    Raises:
        ValueError: if there is no text.
    """
    dtype = np.min_scalar_type(len(tokenizer) - 1)
    bounds = [0]
    raw = folder / "ids.raw"
    with open(raw, "wb") as stream:
        for ids in encode_documents(_shown(texts, name), tokenizer):
            stream.write(ids.astype(dtype).tobytes())
            bounds.append(bounds[-1] + len(ids))
    if len(bounds) == 1:
        raise ValueError(
            f"the corpus {name!r} is empty: its sources hold only white space; give at least "
            "one row with text"
        )
    flat = np.memmap(raw, dtype=dtype, mode="r")
    np.save(folder / "ids.npy", flat)
    del flat
    raw.unlink()
    np.save(folder / "bounds.npy", np.array(bounds, dtype=np.int64))


def encode_documents(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerFast
) -> Iterator[np.ndarray]:
    """Yield `[BOS] text [EOS]` as int64 for each text that is more than white space.

    A tokenizer without a BOS of its own (`document_start`) puts nothing before the text.
    """
    start = document_start(tokenizer)
    remaining = (text for text in texts if text.strip())
    while batch := list(islice(remaining, TEXTS_PER_BATCH)):
        for ids in encode_texts(tokenizer, batch):
            yield np.array([*start, *ids, tokenizer.eos_token_id], dtype=np.int64)


def _shown(texts: Iterable[str], name: str) -> Iterator[str]:
    """Pass texts on; after a few seconds, show the progress."""
    start = time.monotonic()
    num_texts, num_characters = 0, 0
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, transient=True, disable=True) as progress:
        task = progress.add_task("")
        for text in texts:
            yield text
            num_texts += 1
            num_characters += len(text)
            if progress.disable and time.monotonic() - start > SILENT_SECONDS:
                progress.disable = False
                progress.start()
            if not progress.disable and num_texts % TEXTS_PER_BATCH == 0:
                millions = num_characters / 1e6
                progress.update(
                    task,
                    description=f"Tokenising {name}: {num_texts:,} texts, "
                    f"{millions:,.0f} million characters",
                )
