"""Text that is tokenised during training, for corpora too large to prepare before."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.packing import Document, DocumentSource, PackedRows, pack_epoch
from triptych.datamodules.batches.row_stream import Cursor, PlannedRow, RowStream
from triptych.datamodules.batches.token_file import encode_documents


class StreamedText(RowStream[PlannedRow]):
    """Endless passes over texts in order, shuffled and packed block by block.

    A row depends on its block alone. Resuming reads up to the block in which training stopped,
    without tokenising, and packs that block again.

    Args:
        texts: Returns the texts from the start, in the same order each time.
        tokenizer: The tokenizer.
        context_length: T.
        seed: Seed of the shuffles.
        texts_per_block: Number of texts that are shuffled and packed together.
        name: The source's name.
    """

    max_workers = 1

    def __init__(
        self,
        texts: Callable[[], Iterable[str]],
        tokenizer: PreTrainedTokenizerFast,
        *,
        context_length: int,
        seed: int,
        texts_per_block: int,
        name: str,
    ) -> None:
        self._texts = texts
        self._tokenizer = tokenizer
        self._context_length = context_length
        self._seed = seed
        self._texts_per_block = texts_per_block
        self._name = name

    def read(self, cursor: Cursor | None = None) -> Iterator[tuple[PlannedRow, Cursor]]:
        """Yield rows from `cursor` on; see the base class."""
        epoch, block, first = (
            (cursor["epoch"], cursor["block"], cursor["row"]) if cursor else (0, 0, 0)
        )
        while True:
            for number, rows in self._blocks(epoch, block):
                for index in range(first, len(rows)):
                    after = {"epoch": epoch, "block": number, "row": index + 1}
                    yield PlannedRow(rows, index), after
                first = 0
            epoch, block, first = epoch + 1, 0, 0

    def num_rows(self) -> None:
        """Return None: the length is unknown."""
        return

    def _blocks(self, epoch: int, first: int) -> Iterator[tuple[int, PackedRows]]:
        """Yield the packed blocks of one pass with their numbers, from block `first` on."""
        texts = islice(self._texts(), first * self._texts_per_block, None)
        number, is_empty = first, first == 0
        while block := list(islice(texts, self._texts_per_block)):
            documents = _Block(list(encode_documents(block, self._tokenizer)), self._name)
            if documents:
                is_empty = False
                yield (
                    number,
                    pack_epoch(documents, epoch, [self._seed, number], self._context_length),
                )
            number += 1
        if is_empty:
            raise ValueError(
                f"the corpus {self._name!r} is empty: its sources hold only white space; give at "
                "least one row with text"
            )


class _Block(DocumentSource):
    """Documents in memory."""

    def __init__(self, documents: Sequence[np.ndarray], name: str) -> None:
        self.name = name
        self._documents = documents

    def __len__(self) -> int:
        return len(self._documents)

    def document(self, index: int, epoch: int) -> Document:
        """Return document `index`; every token except the first is predicted."""
        return Document(self._documents[index], self._documents[index])
