"""Texts that continue a prompt, as documents with labels on the continuation only.

    Continuation("The capital of France is", " Paris")
      -> [BOS] The capital of France is Paris           labels: on " Paris"

Prompt and continuation are tokenised separately, so the continuation's tokens are known exactly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.packing import IGNORED_LABEL, Document
from triptych.datamodules.batches.tokenizer import encode_texts

OnLongRow = Literal["error", "cut", "skip"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text that continues a prompt.

    Attributes:
        prompt: The text before it, without trailing space; may be empty.
        text: The continuation, with its leading space.
        ends: Whether the document ends with it: a labelled EOS follows.
    """

    prompt: str
    text: str
    ends: bool = False


@dataclass(frozen=True)
class PromptedDocuments:
    """Items with one or several continuations each, as documents.

    Attributes:
        documents: The documents, grouped by item.
        item_of: Index of each document's item among the given ones.
        num_left_out: Items left out because they were too long.
    """

    documents: list[Document]
    item_of: list[int]
    num_left_out: int = 0

    @property
    def items(self) -> list[int]:
        """Indices of the remaining items, ascending."""
        return list(dict.fromkeys(self.item_of))


def prompt_length(document: Document) -> int:
    """Count the tokens before the first label.

    >>> prompt_length(Document(np.array([1, 5, 6, 7]), np.array([-100, -100, 6, 7])))
    2
    """
    return int((document.labels != IGNORED_LABEL).argmax())


def encode_continuations(
    tokenizer: PreTrainedTokenizerFast,
    items: Sequence[Sequence[Continuation]],
    context_length: int,
    on_long_row: OnLongRow,
    room: int = 0,
) -> PromptedDocuments:
    """Tokenise items with their continuations.

    Args:
        tokenizer: A tokenizer with BOS and EOS.
        items: One or several continuations of each item.
        context_length: Maximum length of a document in tokens.
        on_long_row: How to treat a longer item: "error" refuses it; "cut" removes the beginning of
            its prompts (as the LM Evaluation Harness does), and leaves the item out if a
            continuation alone is too long; "skip" leaves it out.
        room: Number of tokens to keep free after each prompt, for generation.

    Raises:
        ValueError: if an item is too long and `on_long_row` is "error", a continuation has no
            tokens, or no item is left.
    """
    flat = [continuation for item in items for continuation in item]
    ids = encode_texts(tokenizer, [c.prompt for c in flat] + [c.text for c in flat])
    encoded = iter(zip(flat, ids[: len(flat)], ids[len(flat) :], strict=True))
    documents: list[Document] = []
    item_of: list[int] = []
    too_long: list[tuple[int, int]] = []
    for index, item in enumerate(items):
        parts = [next(encoded) for _ in item]
        # The tokens after the prompt, and the number of prompt tokens that fit before them.
        ends = [[*text, tokenizer.eos_token_id] if c.ends else text for c, _, text in parts]
        rooms = [context_length - 1 - max(len(end), room) for end in ends]
        spare = [left - len(prompt) for left, (_, prompt, _) in zip(rooms, parts, strict=True)]
        if min(spare) < 0:
            too_long.append((index, context_length - min(spare)))
            if on_long_row != "cut" or min(rooms) < 0:
                continue
        for left, (continuation, prompt, _), end in zip(rooms, parts, ends, strict=True):
            if not end:
                raise ValueError(f"nothing follows the prompt {continuation.prompt!r}")
            kept = prompt[max(0, len(prompt) - left) :]
            documents.append(_document([tokenizer.bos_token_id, *kept], end))
            item_of.append(index)
    encoded_items = PromptedDocuments(documents, item_of, len(items) - len(set(item_of)))
    if too_long and (on_long_row == "error" or not documents):
        _refuse(items, too_long, context_length, on_long_row)
    return encoded_items


def _document(prompt: list[int], end: list[int]) -> Document:
    ids = np.array([*prompt, *end], np.int32)
    labels = ids.copy()
    labels[: len(prompt)] = IGNORED_LABEL
    return Document(ids, labels)


def _refuse(
    items: Sequence[Sequence[Continuation]],
    too_long: list[tuple[int, int]],
    context_length: int,
    on_long_row: OnLongRow,
) -> None:
    index, longest = max(too_long, key=lambda pair: pair[1])
    start = items[index][0].prompt or items[index][0].text.strip()
    start = start if len(start) <= 60 else start[:57] + "..."
    remedy = "give shorter rows, or a model with a longer context"
    if on_long_row == "error":
        remedy = (
            "set on_long_row to cut (removes the beginning of their prompts) or to skip (leaves "
            "them out), or use a model with a longer context"
        )
    raise ValueError(
        f"{len(too_long)} of {len(items)} rows are longer than the context of {context_length} "
        f"tokens; the longest has {longest} ({start!r}): {remedy}"
    )
