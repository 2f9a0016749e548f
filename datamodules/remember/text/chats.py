r"""Chats as background: short conversations in the model's own chat template.

    prompts, or conversations (WildChat's schema)                 `sources.chat_records`
      -> those without a reply get the model's own, made once     `remember.model_replies`
      -> tokens by the chat template, loss on the reply           `batches.chat_replies`
      -> one document a chat, cut to the context, packed          `packing`

A memory that has seen only running text takes the slots that the template reads in every chat for
slots of the fact that is being taught, and then says that fact everywhere. With chats in the
background these slots are known to be common.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveInt
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_replies import asks_in_chat, encode_answered
from triptych.datamodules.batches.chat_template import PLAIN_TEMPLATE
from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import DataPart, RowFormat, locate
from triptych.datamodules.batches.packing import IGNORED_LABEL, Document, DocumentSource
from triptych.datamodules.batches.row_stream import EpochStream
from triptych.datamodules.embedded.tables import EVERYDAY_PROMPTS
from triptych.datamodules.remember.facts.question_template import PLAIN_FORMS
from triptych.datamodules.remember.model_replies import Reply, model_replies
from triptych.datamodules.sources.chat_records import ChatFilter, History, read_conversations
from triptych.datamodules.sources.records import RecordSource, describe, source_fingerprint
from triptych.models.long_loop import with_progress


@dataclass(frozen=True)
class ChatsConfig:
    """Choice of the chats.

    Args:
        source: Conversations in WildChat's schema, or prompts (rows with `prompt`, or the lines of
            a .txt file); embedded: 60 short everyday prompts. A prompt without a reply gets the
            greedy reply of `model`, made once and cached.
        history: The message that is replied to: the user's first ("first_turn") or last
            ("all_turns", with the conversation before it).
        keep: Filter of the conversations.
        num_chats: Use only this many, the first ones that are kept; null: all.
        model: The model that replies: a folder, a hub name, a GGUF file or `smollm2`; null: the one
            that `tokenizer.path` names, which is the model that the run starts from.
        max_new_tokens: Longest reply that it makes, in tokens.
    """

    source: RecordSource = field(default_factory=RecordSource)
    history: History = "first_turn"
    keep: ChatFilter = field(default_factory=ChatFilter)
    num_chats: PositiveInt | None = 1000
    model: str | None = None
    max_new_tokens: PositiveInt = 32


class ChatDocuments(DocumentSource):
    """Chats as documents, the same in every epoch.

    Args:
        documents: The chats, each within the context.
    """

    name = "chats"
    splittable = False  # a chat without its beginning is none

    def __init__(self, documents: Sequence[Document]) -> None:
        self._documents = list(documents)

    def __len__(self) -> int:
        return len(self._documents)

    def document(self, index: int, epoch: int) -> Document:
        """Return chat `index`."""
        return self._documents[index]


class ChatsPart(DataPart):
    """The chats in a datamodule. A tokenizer without a chat template has none.

    Args:
        config: Choice of the chats.
        tokenizer_path: `tokenizer.path` of the datamodule, which names the model that replies.
        data_dir: Folder of data; see `data_paths`.
    """

    name = "chats"

    def __init__(
        self, config: ChatsConfig, tokenizer_path: str, data_dir: str | None = None
    ) -> None:
        self.config = config
        self._source = locate(config.source, data_dir)
        self._model = config.model or tokenizer_path
        self._made: tuple[RowFormat, ChatDocuments] | None = None

    @staticmethod
    def has_form(tokenizer: PreTrainedTokenizerFast) -> bool:
        """Return whether a tokenizer has a chat template of its own, and so takes chats."""
        return asks_in_chat("auto", tokenizer, (*PLAIN_FORMS, PLAIN_TEMPLATE))

    def fingerprint(self) -> str:
        """Hash the conversations and the settings of the chats.

        The model is left out: it is the one that the checkpoint goes on with, wherever its folder
        is now.
        """
        settings = asdict(self.config)
        del settings["source"], settings["model"]
        rows = source_fingerprint(self._source, _everyday_rows)
        return hashlib.sha256(json.dumps([rows, settings]).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield nothing: a tokenizer that is trained here takes no chats."""
        return iter(())

    def train_stream(self, row_format: RowFormat) -> EpochStream:
        """Return the training rows; none, if the tokenizer takes no chats."""
        return EpochStream(self.documents(row_format), row_format.seed, row_format.context_length)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return nothing: chats are background."""
        return []

    def documents(self, row_format: RowFormat) -> ChatDocuments:
        """Return the chats as documents.

        Raises:
            FileNotFoundError: if a file is missing.
            ValueError: if a row is malformed, no chat is left, or no model can reply.
        """
        if self._made is None or self._made[0] != row_format:
            self._made = row_format, ChatDocuments(self._make(row_format))
        return self._made[1]

    def _make(self, row_format: RowFormat) -> list[Document]:
        tokenizer = row_format.tokenizer
        if not self.has_form(tokenizer):
            rank_zero_info("no chats: the tokenizer has no chat template of its own")
            return []
        rows = self._rows()
        open_ones = [row["messages"] for row in rows if row["reply"] is None]
        replies = iter(self._replies(open_ones, row_format.cache_dir))
        answered = [
            Reply(row["reply"], True) if row["reply"] is not None else next(replies) for row in rows
        ]
        documents = []
        for row, reply in with_progress(
            zip(rows, answered, strict=True), "chats to tokens", len(rows)
        ):
            (chat,) = encode_answered(tokenizer, [(row["messages"], reply.text)])
            end = chat.turn_end if reply.is_complete else []
            if len(chat.prompt) < row_format.context_length:
                ids = [*chat.prompt, *chat.reply, *end][: row_format.context_length]
                documents.append(_document(ids, len(chat.prompt)))
        if not documents:
            raise ValueError(
                f"no chat of {describe(self._source)} fits context_length "
                f"({row_format.context_length}), which the prompts alone fill: raise it"
            )
        left_out = len(rows) - len(documents)
        rank_zero_info(
            f"chats of {describe(self._source)}: {len(documents)}"
            + (f" ({left_out} whose prompt fills the context are left out)" if left_out else "")
        )
        return documents

    def _rows(self) -> list[dict[str, Any]]:
        rows = read_conversations(self._source, self.config.history, {"everyday": _everyday_rows})
        kept, counts = self.config.keep.select(rows)
        if not kept:
            raise ValueError(
                f"no chat of {describe(self._source)} is left of {counts['read']}: change "
                "chats.keep, or give other rows"
            )
        return kept[: self.config.num_chats]

    def _replies(self, open_ones: list[list[dict[str, str]]], cache_dir: Path) -> list[Reply]:
        if not open_ones:
            return []
        return model_replies(self._model, open_ones, self.config.max_new_tokens, cache_dir)


def _everyday_rows() -> list[dict[str, Any]]:
    lines = EVERYDAY_PROMPTS.read_text(encoding="utf-8").splitlines()
    return [{"prompt": line} for line in lines]


def _document(ids: list[int], prompt_length: int) -> Document:
    whole = np.array(ids, np.int32)
    labels = whole.copy()
    labels[:prompt_length] = IGNORED_LABEL
    return Document(whole, labels)
