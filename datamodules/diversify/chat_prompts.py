"""Prompts for a policy to answer: WildChat's, one's own, or the embedded questions.

    rows (WildChat's schema, or plain prompts)                     `chat_records`
      -> filtered, without duplicates, split by a hash of the text
      -> tokens by the tokenizer's chat template, or the plain one `chat_template`
      -> shuffled anew in each pass, shared out among processes    `visits`, `resumable_loader`

A batch is a list of rows, each a mapping with `prompt` (the user's message), `messages` (the
conversation up to it), `prompt_ids` (token ids up to where the reply begins) and the data's own
fields (`id`, `answers`, `category`, ...), as `sample` takes it.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from triptych.datamodules.batches.chat_template import encode_prompts, plain_text
from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.resumable_loader import ResumableLoader, Shard
from triptych.datamodules.batches.visits import PlannedVisit, VisitStream
from triptych.datamodules.diversify.chat_records import (
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


@dataclass(frozen=True)
class PromptsConfig:
    """Which prompts a policy is trained on, and which are held out.

    Args:
        source: Rows in WildChat's schema or plain prompts (`chat_records`): embedded, local files
            (.jsonl .csv .parquet .txt, .gz too) or a hub name such as allenai/WildChat-1M. Of the
            embedded sets, `subset` names creative_questions (the default), creative_questions_small
            or one_or_two.
        history: `first_turn` answers the user's first message; `all_turns` the last, with the
            conversation before it.
        keep: Which conversations are left out.
        num_prompts: Train on so many, drawn by `subset_seed`; null: on all.
        subset_seed: Of that draw, whatever the seed of training.
        held_out_share: Share of the prompts that are never trained on, by a hash of their text:
            the same ones in every run. Rows with a field `split` decide themselves: `train`, or the
            name of a held-out set.
        validation_prompts: Validate on at most so many of each held-out set, drawn at random but
            the same each time; null: on all.
        further_fields: Further fields of the data to keep for rewards and metrics, with their kind:
            text, number, texts (a list) or numbers.

    Raises:
        ValueError: if a setting is out of range.
    """

    source: RecordSource = field(default_factory=RecordSource)
    history: History = "first_turn"
    keep: ChatFilter = field(default_factory=ChatFilter)
    num_prompts: int | None = None
    subset_seed: int = 0
    held_out_share: float = 0.05
    validation_prompts: int | None = 256
    further_fields: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_prompts", "validation_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"prompts.{name} is {value}: set it to at least 1, or null")
        if not 0 <= self.held_out_share < 1:
            raise ValueError(
                f"prompts.held_out_share is {self.held_out_share}: set it to at least 0 and below 1"
            )
        for name, kind in self.further_fields.items():
            if kind not in FURTHER_KINDS:
                raise ValueError(
                    f"prompts.further_fields says that {name} is {kind!r}: choose "
                    f"{', '.join(FURTHER_KINDS)}"
                )


class PromptsPart(DataPart):
    """The prompts within a datamodule.

    Args:
        config: Which prompts.
        data_dir: Where relative paths start; see `packed_datamodule.locate`.

    Attributes:
        counts: How many rows were read and kept, and left out for which reason; complete once
            `prompts` was called.
    """

    name = "prompts"

    def __init__(self, config: PromptsConfig, data_dir: str | None = None) -> None:
        self.config = config
        self.counts: dict[str, int] = {}
        self._source = locate(config.source, data_dir)
        self._embedded = embedded_set(config.source, EMBEDDED_PROMPTS)
        self._made: tuple[RowFormat, dict[str, list[PromptRow]]] | None = None

    def fingerprint(self) -> str:
        """Hash the rows and all that decides which of them train, in which words."""
        settings = asdict(self.config)
        for name in ("source", "validation_prompts", "further_fields"):
            del settings[name]
        rows = source_fingerprint(self._source, self._embedded)
        return hashlib.sha256(json.dumps([rows, settings]).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield the prompts in the plain template, for a run without a model's tokenizer."""
        return (plain_text(row["messages"]) for row in self._rows)

    def prompts(self, row_format: RowFormat) -> dict[str, list[PromptRow]]:
        """Return the prompts by split: `train`, then the held-out sets.

        Raises:
            ValueError: if none is left to train on, saying why each was left out.
        """
        if self._made is None or self._made[0] != row_format:
            self._made = row_format, self._make(row_format)
        return self._made[1]

    def train_stream(self, row_format: RowFormat) -> VisitStream:
        """Return the order of the training prompts."""
        return VisitStream(len(self.prompts(row_format)[TRAIN]), 1, 1, True, row_format.seed)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return nothing: held-out prompts are answered, see `ChatPrompts.val_dataloader`."""
        return []

    @cached_property
    def _rows(self) -> list[PromptRow]:
        further = {name: FURTHER_KINDS[kind] for name, kind in self.config.further_fields.items()}
        rows = read_conversations(self._source, self.config.history, EMBEDDED_PROMPTS, further)
        kept, counts = self.config.keep.select(rows)
        self.counts = counts
        self._refuse_none(kept)
        return kept

    def _make(self, row_format: RowFormat) -> dict[str, list[PromptRow]]:
        limit = row_format.context_length
        encoded = encode_prompts(row_format.tokenizer, [row["messages"] for row in self._rows])
        splits: dict[str, list[PromptRow]] = {TRAIN: []}
        short = [
            (row, ids) for row, ids in zip(self._rows, encoded, strict=True) if len(ids) <= limit
        ]
        self.counts |= {"too many tokens": len(encoded) - len(short), "kept": len(short)}
        self._refuse_none(short, limit)
        for row, ids in short:
            by_hash = HELD_OUT if is_held_out(row, self.config.held_out_share) else TRAIN
            fields = {k: v for k, v in row.items() if v is not None and k not in ("split", "reply")}
            splits.setdefault(row["split"] or by_hash, []).append(fields | {"prompt_ids": ids})
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
    """Makes this process's batch: the rows of the prompts planned.

    Args:
        rows: All training prompts.
    """

    def __init__(self, rows: Sequence[PromptRow]) -> None:
        self._rows = rows

    def __call__(self, planned: Sequence[PlannedVisit]) -> list[PromptRow]:
        """Return a row for each prompt planned."""
        return [dict(self._rows[visit.items[0]]) for visit in planned]


class PromptLoader:
    """Batches of held-out prompts, shared out among processes.

    Every process gets equally many batches of equally many rows. Where the rows do not fill the
    last batches, copies of the last one do, with `is_filler` True: leave those out of metrics.

    Args:
        name: Names the log keys.
        rows: The prompts.
        batch_size: Prompts per process and batch.
        shard: This process's part.
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
            if self._shard.world_size == 1:  # alone, a shorter last batch needs no fillers
                places = range(start, min(places.stop, len(self._rows)))
            yield [
                dict(self._rows[place])
                if place < len(self._rows)
                else self._rows[-1] | {"is_filler": True}
                for place in places[self._shard.rows(self._batch_size)]
            ]


class ChatPrompts(PackedDataModule):
    """Prompts to train a policy on, and held-out ones to look at it with.

    A batch is a list of rows (see the top of this file). An epoch is one pass over the training
    prompts, each pass in an order of its own; a run goes on exactly where it stopped, and several
    processes see exactly the prompts of one with as many times the batch. Validation has a loader
    for each held-out set, whose `name` it goes by.

    Args:
        prompts: Which prompts.
        data_dir: Where relative paths start; null: the environment's TRIPTYCH_DATA, or ./data.
            What is not there is looked for in the working directory.
        max_prompt_tokens: Longest prompt in tokens, template included; longer ones are left out
            and counted.
        **kwargs: Further settings, those of `PackedDataModule`; a row is a prompt.

    Source: 2510.20817, section 5 (10 thousand English prompts of WildChat).
    """

    def __init__(
        self,
        prompts: PromptsConfig = PromptsConfig(),
        data_dir: str | None = None,
        max_prompt_tokens: int = 256,
        **kwargs: Any,
    ) -> None:
        if max_prompt_tokens < 2:
            raise ValueError(f"data.max_prompt_tokens is {max_prompt_tokens}: set it to at least 2")
        self.part = PromptsPart(prompts, data_dir)
        super().__init__([self.part], [1.0], context_length=max_prompt_tokens, **kwargs)

    @property
    def prompts(self) -> dict[str, list[PromptRow]]:
        """The prompts by split: `train`, then the held-out sets by their names."""
        (row_format,) = self._row_formats()
        return self.part.prompts(row_format)

    @property
    def counts(self) -> dict[str, int]:
        """How many rows were read and kept, and left out for which reason."""
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

    def val_dataloader(self) -> list[PromptLoader]:
        """Return one loader for each held-out set."""
        return [
            PromptLoader(name, rows, self.eval_batch_size, self._shard)
            for name, rows in self.prompts.items()
            if name != TRAIN
        ]


def _draw(rows: list[PromptRow], count: int | None, seed: int) -> list[PromptRow]:
    """Draw some rows, in their order."""
    if count is None or count >= len(rows):
        return rows
    kept = sorted(random.Random(seed).sample(range(len(rows)), count))
    return [rows[index] for index in kept]
