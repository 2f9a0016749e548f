"""Prompts for a policy to answer: WildChat's, the user's, or the embedded questions.

    rows (WildChat's schema, or plain prompts)                     `chat_records`
      -> filtered, without duplicates, split by a hash of the text
      -> tokens by the tokenizer's chat template, or the plain one `chat_template`
      -> shuffled anew in each pass, divided among processes       `visits`, `resumable_loader`

A batch is a list of rows, the input of `sample`. Each row is a mapping with `prompt` (the user's
message), `messages` (the conversation up to it), `prompt_ids` (token ids up to where the reply
begins) and further fields of the data (`id`, `answers`, `category`, ...).
"""

import hashlib
import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any, Literal

from jsonargparse.typing import ClosedUnitInterval, PositiveInt
from lightning.pytorch.utilities import rank_zero_info
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_template import PLAIN_TEMPLATE, encode_prompts, plain_text
from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.resumable_loader import ResumableLoader, Shard
from triptych.datamodules.batches.visits import PlannedVisit, VisitStream
from triptych.datamodules.diversify.math_rows import MathTask, math_adapter
from triptych.datamodules.sources.chat_records import (
    EMBEDDED_PROMPTS,
    FURTHER_KINDS,
    ChatFilter,
    History,
    embedded_set,
    is_held_out,
    read_conversations,
)
from triptych.datamodules.sources.records import RecordSource, describe, source_fingerprint

TRAIN, HELD_OUT = "train", "held_out"
PromptRow = dict[str, Any]
FieldKind = Literal["text", "number", "texts", "numbers"]


@dataclass(frozen=True)
class PromptsConfig:
    """Choice of the prompts to train on and to hold out.

    Args:
        source: Rows in WildChat's schema or plain prompts (`chat_records`): embedded, local files
            (.jsonl .csv .parquet .txt, .gz too) or a hub name such as allenai/WildChat-1M. Of the
            embedded sets, `subset` names creative_questions (the default),
            creative_questions_small, one_or_two or one_or_two_few_shot.
        history: The message to answer: `first_turn`, the user's first; `all_turns`, the user's
            last, with the conversation before it.
        keep: Filter of the conversations.
        examples: Questions and answers that each conversation is to begin with (after its system
            message), for a model that is too small to answer in the wanted form without them.
        num_prompts: Number of training prompts, drawn by `subset_seed`; null: all.
        subset_seed: Seed of that draw, independent of the seed of training.
        held_out_share: Share of the prompts that are never trained on, by a hash of their text: the
            same ones in every run. A field `split` of a row takes precedence: `train`, or the name
            of a held-out set.
        validation_prompts: Maximum number of prompts of each held-out set to validate on, the same
            random ones each time; null: all.
        further_fields: Further fields of the data to keep for rewards and metrics, with their kind:
            text, number, texts (a list) or numbers.
        task: Read rows of verifiable maths in the form of gsm8k, svamp, aqua or math: see
            `math_rows`. Null: rows as above.
        instruction: With a task: what stands below each question, such as how to give the answer.
    """

    source: RecordSource = field(default_factory=RecordSource)
    history: History = "first_turn"
    keep: ChatFilter = field(default_factory=ChatFilter)
    examples: list[tuple[str, str]] = field(default_factory=list)
    num_prompts: PositiveInt | None = None
    subset_seed: int = 0
    held_out_share: ClosedUnitInterval = 0.05
    validation_prompts: PositiveInt | None = 256
    further_fields: dict[str, FieldKind] = field(default_factory=dict)
    task: MathTask | None = None
    instruction: str = "Put the final answer in \\boxed{}."


class PromptsPart(DataPart):
    """The prompts in a datamodule.

    Args:
        config: Choice of the prompts.
        data_dir: Folder of data; see `data_paths`.

    Attributes:
        counts: Numbers of rows read, kept, and left out by reason; complete after a call of
            `prompts`.
    """

    name = "prompts"
    chat_template = PLAIN_TEMPLATE

    def __init__(self, config: PromptsConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.counts: dict[str, int] = {}
        self._source = locate(config.source, data_dir)
        self._embedded = embedded_set(config.source, EMBEDDED_PROMPTS)
        self._made: tuple[RowFormat, dict[str, list[PromptRow]]] | None = None

    def asked_in(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """Return the plain form; None if the tokenizer has a chat template, which is used."""
        return self.chat_template if tokenizer.chat_template is None else None

    def fingerprint(self) -> str:
        """Hash the rows and everything that determines the training prompts."""
        settings = asdict(self.config)
        left_out = ["source", "validation_prompts", "further_fields"]
        if self.config.task is None:
            left_out += ["task", "instruction"]
        if not self.config.examples:
            left_out.append("examples")
        if self.config.keep.categories is None:
            del settings["keep"]["categories"]
        for name in left_out:
            del settings[name]
        rows = source_fingerprint(self._source, self._embedded)
        return hashlib.sha256(json.dumps([rows, settings]).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield the prompts in the plain template, for a run that trains its tokenizer."""
        return (plain_text(row["messages"]) for row in self._rows)

    def prompts(self, row_format: RowFormat) -> dict[str, list[PromptRow]]:
        """Return the prompts by split: `train`, then the held-out sets.

        Raises:
            ValueError: if none is left to train on, with the numbers left out by reason.
        """
        if self._made is None or self._made[0] != row_format:
            self._made = row_format, self._make(row_format)
        return self._made[1]

    def train_stream(self, row_format: RowFormat) -> VisitStream:
        """Return the order of the training prompts."""
        return VisitStream(len(self.prompts(row_format)[TRAIN]), 1, 1, True, row_format.seed)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return nothing: held-out prompts have other loaders, see `ChatPrompts.val_dataloader`."""
        return []

    @cached_property
    def _rows(self) -> list[PromptRow]:
        further = {name: FURTHER_KINDS[kind] for name, kind in self.config.further_fields.items()}
        task = self.config.task
        adapt = None if task is None else math_adapter(task, self.config.instruction)
        rows = read_conversations(
            self._source, self.config.history, EMBEDDED_PROMPTS, further, adapt
        )
        kept, counts = self.config.keep.select(rows)
        self.counts = counts
        self._refuse_none(kept)
        return kept

    def _make(self, row_format: RowFormat) -> dict[str, list[PromptRow]]:
        limit = row_format.context_length
        asked = [with_examples(row["messages"], self.config.examples) for row in self._rows]
        encoded = encode_prompts(row_format.tokenizer, asked)
        splits: dict[str, list[PromptRow]] = {TRAIN: []}
        short = [
            (row, messages, ids)
            for row, messages, ids in zip(self._rows, asked, encoded, strict=True)
            if len(ids) <= limit
        ]
        self.counts |= {"too many tokens": len(encoded) - len(short), "kept": len(short)}
        self._refuse_none(short, limit)
        for row, messages, ids in short:
            by_hash = HELD_OUT if is_held_out(row, self.config.held_out_share) else TRAIN
            fields = {k: v for k, v in row.items() if v is not None and k not in ("split", "reply")}
            own = {"messages": messages, "prompt_ids": ids}
            splits.setdefault(row["split"] or by_hash, []).append(fields | own)
        wanted = self.config.num_prompts
        if wanted is not None and wanted > len(splits[TRAIN]):
            raise ValueError(
                f"prompts.num_prompts is {wanted}, but only {len(splits[TRAIN])} are left to train "
                f"on in {describe(self._source)} ({self._reasons()}): lower it, or keep more"
            )
        self._refuse_none(splits[TRAIN])
        splits[TRAIN] = _draw(splits[TRAIN], wanted, self.config.subset_seed)
        for name in splits.keys() - {TRAIN}:
            splits[name] = _draw(splits[name], self.config.validation_prompts, 0)
        sizes = ", ".join(f"{name} {len(rows)}" for name, rows in splits.items())
        rank_zero_info(f"prompts of {describe(self._source)}: {sizes} ({self._reasons()})")
        return splits

    def _refuse_none(self, rows: Sequence[Any], max_tokens: int | None = None) -> None:
        if rows:
            return
        longer = f", or raise max_prompt_tokens ({max_tokens})" if max_tokens is not None else ""
        raise ValueError(
            f"no prompt of {describe(self._source)} is left to train on ({self._reasons()}): "
            f"change prompts.keep or prompts.held_out_share{longer}, or give other rows"
        )

    def _reasons(self) -> str:
        return ", ".join(f"{name} {count}" for name, count in self.counts.items() if count)


class PromptCollate:
    """Makes the batch of this process: the rows of the planned prompts.

    Args:
        rows: All training prompts.
    """

    def __init__(self, rows: Sequence[PromptRow]) -> None:
        self._rows = rows

    def __call__(self, planned: Sequence[PlannedVisit]) -> list[PromptRow]:
        """Return a row for each planned prompt."""
        return [dict(self._rows[visit.items[0]]) for visit in planned]


class PromptLoader:
    """Batches of held-out prompts, divided among processes.

    Every process gets equally many batches of equally many rows. Copies of the last row complete
    the last batches, with `is_filler` True: leave those out of metrics.

    Args:
        name: Part of the log keys.
        rows: The prompts.
        batch_size: Prompts per process and batch.
        shard: The share of this process.
    """

    def __init__(self, name: str, rows: Sequence[PromptRow], batch_size: int, shard: Shard) -> None:
        self.name = name
        self._rows = rows
        self._batch_size = batch_size
        self._shard = shard

    def __len__(self) -> int:
        return -(-len(self._rows) // (self._batch_size * self._shard.world_size))

    def __iter__(self) -> Iterator[list[PromptRow]]:
        global_batch_size = self._batch_size * self._shard.world_size
        for start in range(0, len(self._rows), global_batch_size):
            places = range(start, start + global_batch_size)
            if self._shard.world_size == 1:  # a single process needs no fillers
                places = range(start, min(places.stop, len(self._rows)))
            yield [
                dict(self._rows[place])
                if place < len(self._rows)
                else self._rows[-1] | {"is_filler": True}
                for place in places[self._shard.rows(self._batch_size)]
            ]


class ChatPrompts(PackedDataModule):
    """Prompts to train a policy on, and held-out prompts to validate it on.

    A batch is a list of rows (see the top of this file). An epoch is one pass over the training
    prompts, in an order drawn anew. A run resumes exactly. Several processes see the same prompts
    as a single one with the global batch size. Validation has a loader for each held-out set, with
    its `name`.

    Args:
        prompts: Choice of the prompts.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        max_prompt_tokens: Maximum length of a prompt in tokens, with its template; longer prompts
            are left out and counted.
        **kwargs: Further settings, those of `PackedDataModule`; a row is a prompt.

    Source: 2510.20817, section 5 (10 thousand English prompts of WildChat).
    """

    def __init__(
        self,
        prompts: PromptsConfig = PromptsConfig(),
        *,
        data_dir: str | None = None,
        max_prompt_tokens: PositiveInt = 256,
        **kwargs: Any,
    ) -> None:
        self.part = PromptsPart(prompts, data_dir)
        super().__init__([self.part], [1.0], context_length=max_prompt_tokens, **kwargs)

    @property
    def prompts(self) -> dict[str, list[PromptRow]]:
        """The prompts by split: `train`, then the held-out sets by name."""
        (row_format,) = self._row_formats()
        return self.part.prompts(row_format)

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of rows read, kept, and left out by reason."""
        _ = self.prompts
        return self.part.counts

    def train_dataloader(self) -> ResumableLoader:
        """Return the training batches."""
        (row_format,) = self._row_formats()
        stream = self.part.train_stream(row_format)
        return ResumableLoader(
            stream,
            PromptCollate(self.prompts[TRAIN]),
            batch_size=self.batch_size,
            rows_per_epoch=self.rows_per_epoch or stream.num_rows(),
            shard=self._shard,
            num_workers=self.num_workers,
            trainer=self.trainer,
        )

    def val_dataloader(self) -> list[PromptLoader]:  # type: ignore[override]  # other batches
        """Return one loader for each held-out set."""
        return [
            PromptLoader(name, rows, self.eval_batch_size, self._shard)
            for name, rows in self.prompts.items()
            if name != TRAIN
        ]


def with_examples(
    messages: Sequence[Mapping[str, str]], examples: Sequence[tuple[str, str]]
) -> list[dict[str, str]]:
    """Put examples in front of a conversation, after its system message.

    >>> asked = [{"role": "user", "content": "Name a tool."}]
    >>> [m["content"] for m in with_examples(asked, [("Name a fruit.", "Pear.")])]
    ['Name a fruit.', 'Pear.', 'Name a tool.']
    """
    has_system = bool(messages) and messages[0]["role"] == "system"
    shown = [
        {"role": role, "content": content}
        for example in examples
        for role, content in zip(("user", "assistant"), example, strict=True)
    ]
    system, rest = messages[: int(has_system)], messages[int(has_system) :]
    return [*map(dict, system), *shown, *map(dict, rest)]


def _draw(rows: list[PromptRow], count: int | None, seed: int) -> list[PromptRow]:
    """Draw at most `count` rows, in their order."""
    if count is None or count >= len(rows):
        return rows
    kept = sorted(random.Random(seed).sample(range(len(rows)), count))
    return [rows[index] for index in kept]
