"""Texts that continue a prompt, as documents with labels on the continuation only.

    Continuation("The capital of France is", " Paris")
      -> [BOS] The capital of France is Paris           labels: on " Paris"

Prompt and continuation are tokenised as one text and cut by offsets (`cut_tokens`), so the tokens
are those that the model meets in texts. A continuation in chat form is the reply to a message, in
the tokenizer's own template (`chat_replies`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_replies import encode_chats
from triptych.datamodules.batches.cut_tokens import encode_parts
from triptych.datamodules.batches.packing import IGNORED_LABEL, Document
from triptych.datamodules.batches.tokenizer import document_start, prompt_start

OnLongRow = Literal["error", "cut", "skip"]


@dataclass(frozen=True, slots=True)
class Continuation:
    """A text that continues a prompt.

    Attributes:
        prompt: The text before it, without trailing space; may be empty. In chat form, the user's
            message.
        text: The continuation, with its leading space. In chat form, the reply.
        ends: Whether the document ends with it: a labelled EOS follows. In chat form, the end of
            the turn.
        chat: Whether it is a reply in the tokenizer's chat template.
    """

    prompt: str
    text: str
    ends: bool = False
    chat: bool = False


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
    encoded = iter(_encoded(tokenizer, flat))
    documents: list[Document] = []
    item_of: list[int] = []
    too_long: list[tuple[int, int]] = []
    for index, item in enumerate(items):
        parts = [next(encoded) for _ in item]
        # The number of prompt tokens that fit before the tokens after the prompt.
        rooms = [context_length - len(part.start) - max(len(part.end), room) for part in parts]
        spare = [left - len(part.prompt) for left, part in zip(rooms, parts, strict=True)]
        if min(spare) < 0:
            too_long.append((index, context_length - min(spare)))
            if on_long_row != "cut" or min(rooms) < 0:
                continue
        for left, part, continuation in zip(rooms, parts, item, strict=True):
            if not part.end:
                raise ValueError(f"nothing follows the prompt {continuation.prompt!r}")
            kept = part.prompt[max(0, len(part.prompt) - left) :]
            documents.append(_document([*part.start, *kept], part.end))
            item_of.append(index)
    encoded_items = PromptedDocuments(documents, item_of, len(items) - len(set(item_of)))
    if too_long and (on_long_row == "error" or not documents):
        _refuse(items, too_long, context_length, on_long_row)
    return encoded_items


class _Encoded(NamedTuple):
    """Ids before the prompt's text, of the prompt, and of all that has labels."""

    start: list[int]
    prompt: list[int]
    end: list[int]


def _encoded(
    tokenizer: PreTrainedTokenizerFast, continuations: Sequence[Continuation]
) -> list[_Encoded]:
    texts = iter(encode_parts(tokenizer, [(c.prompt, c.text) for c in continuations if not c.chat]))
    chats = iter(encode_chats(tokenizer, [(c.prompt, c.text) for c in continuations if c.chat]))
    start, eos = document_start(tokenizer), tokenizer.eos_token_id
    encoded = []
    for continuation in continuations:
        if continuation.chat:
            chat = next(chats)
            end = [*chat.reply, *chat.turn_end] if continuation.ends else chat.reply
            encoded.append(_Encoded([], chat.prompt, end))
        else:
            prompt, text = next(texts)
            before = start if prompt else prompt_start(tokenizer)
            encoded.append(_Encoded(before, prompt, [*text, eos] if continuation.ends else text))
    return encoded


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
