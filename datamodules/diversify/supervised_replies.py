"""Supervised replies: the warm-up that teaches a model to answer before policy training.

    rows with a prompt and replies, or conversations with an assistant   `chat_records`
      -> tokens by the chat template, labels on the reply only           `chat_template`
      -> each prompt several times an epoch, replies by their weights    `reply_documents`
      -> packed                                                          `packed_datamodule`

    {"prompt": "Name a fruit.", "replies": ["pear", "plum"], "weights": [0.8, 0.2]}

The embedded sets have the prompts of `chat_prompts`, held-out ones included. Their replies have an
uneven prior over the right answers, and a share of wrong ones.
"""

import hashlib
import json
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_template import (
    PLAIN_TEMPLATE,
    encode_prompts,
    encode_replies,
    plain_text,
)
from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.length_batches import left_padded
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.reply_documents import ReplyDocuments, TaughtPrompt
from triptych.datamodules.batches.row_stream import EpochStream
from triptych.datamodules.sources.chat_records import (
    EMBEDDED_REPLIES,
    ChatFilter,
    History,
    embedded_set,
    is_held_out,
    read_conversations,
)
from triptych.datamodules.sources.records import RecordSource, describe, source_fingerprint

# Validation replies do not depend on the seed of training.
VALIDATION_SEED = 0
# Number of replies to each prompt that the tokenizer is trained on.
TOKENIZER_REPLIES = 4


@dataclass(frozen=True)
class RepliesConfig:
    """Choice of the replies to teach.

    Args:
        source: Rows with a prompt and its `replies` (with `weights`, or equally likely), or
            conversations, with the assistant's answer as the reply (`chat_records`). Embedded,
            local or by hub name; of the embedded sets, `subset` names creative_questions (the
            default), creative_questions_small or one_or_two.
        history: The message of a conversation to answer; see `chat_prompts.PromptsConfig`.
        keep: Filter of the conversations.
        draws_per_prompt: Replies to each prompt in an epoch.
        held_out_share: Share of the prompts that are only asked in validation, by a hash of their
            text; 0: validation asks taught prompts. A field `split` has no effect.
        validation_prompts: Maximum number of prompts to ask, the same random ones each time; null:
            all.
    """

    source: RecordSource = field(default_factory=RecordSource)
    history: History = "first_turn"
    keep: ChatFilter = field(default_factory=ChatFilter)
    draws_per_prompt: PositiveInt = 1
    held_out_share: ClosedUnitInterval = 0.0
    validation_prompts: PositiveInt | None = 256


class RepliesPart(DataPart):
    """The replies in a datamodule.

    Args:
        config: Choice of the replies.
        data_dir: Folder of data; see `data_paths`.
    """

    name = "replies"
    chat_template = PLAIN_TEMPLATE

    def __init__(self, config: RepliesConfig, data_dir: str | None = None) -> None:
        self.config = config
        self._source = locate(config.source, data_dir)
        self._embedded = embedded_set(config.source, EMBEDDED_REPLIES)
        self._made: tuple[RowFormat, list[TaughtPrompt], list[TaughtPrompt]] | None = None

    def asked_in(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """Return the plain form; None if the tokenizer has a chat template, which is used."""
        return self.chat_template if tokenizer.chat_template is None else None

    def fingerprint(self) -> str:
        """Hash the rows and the settings that determine the taught replies."""
        settings = asdict(self.config)
        for name in ("source", "validation_prompts"):
            del settings[name]
        rows = source_fingerprint(self._source, self._embedded)
        return hashlib.sha256(json.dumps([rows, settings]).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield each prompt with a few of its replies, in turn."""
        for number, row in enumerate(self._rows):
            replies, count = row["replies"], min(TOKENIZER_REPLIES, len(row["replies"]))
            prompt = plain_text(row["messages"])
            yield prompt
            for turn in range(count):
                yield replies[(number * count + turn) % len(replies)]

    def prompts(self, row_format: RowFormat) -> tuple[list[TaughtPrompt], list[TaughtPrompt]]:
        """Return the prompts to teach, and those to ask in validation.

        Raises:
            ValueError: if none is left to teach.
        """
        if self._made is None or self._made[0] != row_format:
            self._made = (row_format, *self._make(row_format))
        return self._made[1], self._made[2]

    def train_stream(self, row_format: RowFormat) -> EpochStream:
        """Return the training rows."""
        taught, _ = self.prompts(row_format)
        documents = ReplyDocuments(taught, self.config.draws_per_prompt, row_format.seed)
        return EpochStream(documents, row_format.seed, row_format.context_length)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return the prompts to ask, with one reply each, drawn by weight."""
        _, asked = self.prompts(row_format)
        return [Evaluation(self.name, len(asked), ReplyCollate(asked, row_format))]

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        further = {"replies": list[str], "weights": list[int | float]}
        rows = read_conversations(
            self._source, self.config.history, EMBEDDED_REPLIES, further, row_check=_weights_fault
        )
        kept, counts = self.config.keep.select(_with_replies(rows, describe(self._source)))
        if not kept:
            raise ValueError(
                f"no prompt of {describe(self._source)} is left to teach ({counts}): change "
                "replies.keep, or give other rows"
            )
        return kept

    def _make(self, row_format: RowFormat) -> tuple[list[TaughtPrompt], list[TaughtPrompt]]:
        tokenizer, limit = row_format.tokenizer, row_format.context_length
        texts = list(dict.fromkeys(reply for row in self._rows for reply in row["replies"]))
        ids_of = dict(zip(texts, encode_replies(tokenizer, texts), strict=True))
        encoded = encode_prompts(tokenizer, [row["messages"] for row in self._rows])
        taught: list[TaughtPrompt] = []
        asked: list[TaughtPrompt] = []
        num_too_long = 0
        for row, prompt_ids in zip(self._rows, encoded, strict=True):
            fitting = [
                (ids_of[reply], weight)
                for reply, weight in zip(row["replies"], row["weights"], strict=True)
                if len(prompt_ids) + len(ids_of[reply]) <= limit
            ]
            num_too_long += len(row["replies"]) - len(fitting)
            if sum(weight for _, weight in fitting) == 0:
                continue
            prompt = TaughtPrompt(
                row["id"],
                row["prompt"],
                prompt_ids,
                [ids for ids, _ in fitting],
                [weight for _, weight in fitting],
                row["answers"] or [],
            )
            held_out = is_held_out(row, self.config.held_out_share)
            (asked if held_out else taught).append(prompt)
        if num_too_long:
            rank_zero_info(
                f"left out {num_too_long} replies of {describe(self._source)} that are longer, "
                f"with their prompts, than context_length ({limit} tokens)"
            )
        if not taught:
            raise ValueError(
                f"no reply of {describe(self._source)} is left to teach: {num_too_long} are "
                f"longer, with their prompts, than context_length ({limit}); raise it, or lower "
                "replies.held_out_share"
            )
        asked = asked or taught
        count = min(self.config.validation_prompts or len(asked), len(asked))
        kept = sorted(random.Random(VALIDATION_SEED).sample(range(len(asked)), count))
        return taught, [asked[place] for place in kept]


class ReplyCollate:
    """Makes validation batches: a reply to each prompt to measure, and the prompt to answer.

    Args:
        prompts: The prompts. If all have right answers, generated replies are scored.
        row_format: Tokenizer and layout.
    """

    def __init__(self, prompts: Sequence[TaughtPrompt], row_format: RowFormat) -> None:
        self._prompts = list(prompts)
        self._row_format = row_format
        self._documents = ReplyDocuments(prompts, seed=VALIDATION_SEED)
        self._has_answers = all(prompt.answers for prompt in prompts)

    def __call__(self, rows: Sequence[int]) -> dict[str, Any]:
        """Make a batch of the prompts with the given indices.

        Returns:
            The keys of `packing.collate_rows`, with labels on the reply. With right answers also
            prompt_ids and prompt_mask of `length_batches.left_padded`, and lists of questions and
            answers, to generate replies and score them.
        """
        batch = self._row_format.collate_padded([self._documents.document(row, 0) for row in rows])
        if not self._has_answers:
            return batch
        prompts = [self._prompts[row] for row in rows]
        prompt_ids, prompt_mask = left_padded(
            [prompt.prompt_ids for prompt in prompts], self._row_format.tokenizer.pad_token_id
        )
        return batch | {
            "prompt_ids": prompt_ids,
            "prompt_mask": prompt_mask,
            "questions": [prompt.prompt for prompt in prompts],
            "answers": [list(prompt.answers) for prompt in prompts],
        }


class SupervisedReplies(PackedDataModule):
    """Training and validation on replies to prompts.

    Several prompts with their replies share a row, and each attends to itself only. A prompt with a
    reply longer than `context_length` is left out and counted.

    Args:
        replies: Choice of the replies.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        **kwargs: Further settings, those of `PackedDataModule`.
    """

    def __init__(
        self,
        replies: RepliesConfig = RepliesConfig(),
        *,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [RepliesPart(replies, data_dir)],
            [1.0],
            **kwargs,
        )


def _weights_fault(row: dict[str, Any]) -> str | None:
    """Find weights that are not one for each reply, negative, NaN, infinite, or all zero."""
    weights = row["weights"]
    replies = row["replies"]
    if weights and replies and len(weights) != len(replies):
        return f"{len(replies)} replies have {len(weights)} weights: give a weight for each reply"
    # A comparison with NaN is false, so the right case has to be the one that is asked for.
    if not weights or (all(0 <= weight < math.inf for weight in weights) and sum(weights) > 0):
        return None
    return f"field 'weights' must be finite, not negative, and one above 0, got {weights!r:.80}"


def _with_replies(rows: Iterator[dict[str, Any]], source: str) -> Iterator[dict[str, Any]]:
    """Fill in `replies` and `weights`; refuse rows without replies or with invalid weights."""
    for row in rows:
        replies = row["replies"] or [reply for reply in [row["reply"]] if reply is not None]
        weights = row["weights"] or [1.0] * len(replies)
        if not replies or len(weights) != len(replies):
            raise ValueError(
                f"{source}: the prompt {row['id']!r} has {len(replies)} replies and "
                f"{len(weights)} weights: give at least one reply (`replies`, or a message of the "
                "assistant), and a weight for each"
            )
        yield row | {"replies": replies, "weights": weights}
