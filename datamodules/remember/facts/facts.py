"""Facts to teach and to ask: TriviaQA-style rows, with wordings by relation.

    rows (question, answers, statement?, relation?, subject?)      `read_facts`
      -> a new wording of every fact in each epoch, packed         `fact_documents.FactDocuments`
      -> held-out questions                                        `fact_questions`

The embedded default is 1,510 facts about countries, elements, US states and books.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from jsonargparse.typing import ClosedUnitInterval, NonNegativeInt, PositiveInt
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_replies import Form, asks_in_chat
from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.row_stream import EpochStream
from triptych.datamodules.batches.tokenizer import document_start
from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.facts.fact_choice import cap_answers, draw, of_relations
from triptych.datamodules.remember.facts.fact_documents import FactDocuments, LossOn
from triptych.datamodules.remember.facts.fact_questions import question_evaluation
from triptych.datamodules.remember.facts.fact_rows import (
    OnContradiction,
    with_rephrasings,
)
from triptych.datamodules.remember.facts.fact_rows import (
    read_facts as read_facts,
)
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    QuestionSet,
    Reply,
)
from triptych.datamodules.remember.facts.question_template import (
    PLAIN_FORMS,
    QUESTION_TEMPLATE,
    question_template,
)
from triptych.datamodules.sources.data_paths import data_path
from triptych.datamodules.sources.records import (
    RecordSource,
    describe,
    refuse_shared_files,
    source_fingerprint,
)


@dataclass(frozen=True)
class FactsConfig:
    """Choice of facts, and how they are taught and asked.

    Args:
        source: Rows with `question` and `answers`, and perhaps `id`, `first_answer` (the answer to
            teach, if it is not the first of `answers`), `statement`, `relation`, `subject`,
            `rephrase`, `held_out` (questions that are never taught), `paraphrases` (statements),
            `locality` and `portability`; plain text with a fact a line; or rows of KnowEdit,
            CounterFact, ZsRE, PopQA or TriviaQA (see `fact_formats`).
        form: "chat" teaches and asks questions in the tokenizer's chat template, "plain" as
            "Question: ... Answer: ...", "auto" in chat form where the tokenizer has a template.
        reply: In chat form, teach as the reply the fact's "statement", if it has one, or the
            "answer" alone.
        rephrasings: Rows with `id` (of a fact) and `rephrase`, `held_out` or `paraphrases`; null:
            none besides those in `source`. Rows of other facts are skipped.
        on_contradiction: What to do where two facts give one question different answers: "warn"
            names the lines, "error" refuses them, "replace" keeps the later one.
        templates: YAML file of templates by relation; null: the built-in ones.
        relations: Use only facts of these relations, named as in the source or the templates.
        max_facts_per_answer: Use at most this many facts with the same answer, drawn by
            `subset_seed`, so that guessing the commonest answers scores low; null: all.
        skip_facts: Skip this many facts at the start of an order drawn by `subset_seed`, and all
            later facts about the same subject and relation. Runs that differ only in
            `num_facts: 1000` and `skip_facts: 1000` have no fact in common: the OLD facts of a
            pretrained model, and the NEW ones to teach it.
        num_facts: Use only the next facts of that order, this many; null: all.
        answers_of_first: Of those, use only facts with an answer that also occurs among this many
            facts at the start of the order, which a model was pretrained on. The new thing to learn
            is then the association, not the answer's name. Null: any answer.
        later_relations: Of those, use only facts of these relations; null: any. Unlike `relations`
            it keeps the order, so a model's OLD facts may be of other relations.
        subset_seed: Seed of that order, independent of the seed of training.
        statement_share: Share of statements among the training wordings; the others are questions.
        loss_on: "answer" trains on the answer's tokens and EOS; "all" on the whole wording.
        validation_sources: Further sources, by the name of their log keys. Their questions are
            asked as they are and never taught.
        validation_facts: Number of facts asked in validation; null: all.
        validation_questions: The questions asked in validation: "held_out" (never taught; facts
            without templates are not asked), "training", or "own_question" (the source's).
        leave_out: Ids of facts not to use, such as those that a model knows already.
    """

    source: RecordSource = field(default_factory=RecordSource)
    form: Form = "auto"
    reply: Reply = "statement"
    rephrasings: RecordSource | None = None
    on_contradiction: OnContradiction = "warn"
    templates: str | None = None
    relations: list[str] | None = None
    max_facts_per_answer: PositiveInt | None = None
    skip_facts: NonNegativeInt = 0
    num_facts: PositiveInt | None = None
    answers_of_first: PositiveInt | None = None
    later_relations: list[str] | None = None
    subset_seed: int = 0
    statement_share: ClosedUnitInterval = 0.3
    loss_on: LossOn = "answer"
    validation_sources: dict[str, RecordSource] = field(default_factory=dict)
    validation_facts: PositiveInt | None = 512
    validation_questions: QuestionSet = "held_out"
    leave_out: list[str] = field(default_factory=list)


def read_templates(path: str | None, data_dir: str | None) -> FactTemplates:
    """Read templates from a YAML file, located by `data_path`; None reads the built-in ones."""
    return FactTemplates.from_file(path if path is None else data_path(path, data_dir))


def facts_of(config: FactsConfig, templates: FactTemplates) -> list[Fact]:
    """Read the facts of a config with located sources, with their rephrasings.

    Errors are those of `read_facts`.
    """
    facts = read_facts(config.source, templates, config.on_contradiction)
    return with_rephrasings(facts, config.rephrasings) if config.rephrasings else facts


def located(config: FactsConfig, data_dir: str | None) -> FactsConfig:
    """Resolve the paths of the facts and their rephrasings by `data_path`."""
    further = config.rephrasings and locate(config.rephrasings, data_dir)
    return replace(config, source=locate(config.source, data_dir), rephrasings=further)


def in_form(
    templates: FactTemplates, config: FactsConfig, tokenizer: PreTrainedTokenizerFast
) -> FactTemplates:
    """Return the templates in the form in which a config asks with a tokenizer."""
    return templates.in_form(asks_in_chat(config.form, tokenizer, PLAIN_FORMS), config.reply)


def choose_facts(
    facts: Sequence[Fact], config: FactsConfig, templates: FactTemplates
) -> list[Fact]:
    """Choose facts (see `fact_choice`); the source's order is kept.

    Raises:
        ValueError: if a relation does not occur or there are fewer facts than asked for.
    """
    source = describe(config.source)
    left_out = set(config.leave_out)
    chosen = [fact for fact in facts if fact.id not in left_out]
    if config.relations is not None:
        chosen = of_relations(chosen, config.relations, templates, source)
    if config.max_facts_per_answer is not None:
        chosen = cap_answers(chosen, config.max_facts_per_answer, config.subset_seed)
    later = config.answers_of_first, config.later_relations
    if config.num_facts is not None or config.skip_facts or later != (None, None):
        chosen = draw(
            chosen,
            config.skip_facts,
            config.num_facts,
            config.subset_seed,
            templates,
            source,
            *later,
        )
    return chosen


class FactsPart(DataPart):
    """The facts in a datamodule; a part of `Facts` and of mixtures with facts.

    Args:
        config: Choice of facts, and how they are taught and asked.
        data_dir: Folder of data; see `data_paths`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a setting is out of range, or a file both trains and validates.
    """

    name = "facts"
    chat_template = QUESTION_TEMPLATE

    def __init__(self, config: FactsConfig, data_dir: str | None = None) -> None:
        if self.name in config.validation_sources:
            raise ValueError(
                f"facts.validation_sources has an entry {self.name!r}, but that is the name under "
                "which the taught facts are asked: choose another name"
            )
        further = {n: locate(s, data_dir) for n, s in config.validation_sources.items()}
        config = located(config, data_dir)
        refuse_shared_files([config.source], further.values())
        self.config = replace(config, validation_sources=further)
        self.templates = read_templates(config.templates, data_dir)

    @cached_property
    def facts(self) -> list[Fact]:
        """The facts to teach."""
        facts = facts_of(self.config, self.templates)
        return choose_facts(facts, self.config, self.templates)

    def asked_in(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """Return the plain form as a chat template; None if the tokenizer's own is used."""
        if asks_in_chat(self.config.form, tokenizer, PLAIN_FORMS):
            return None
        return question_template(bool(document_start(tokenizer)))

    def worded(self, tokenizer: PreTrainedTokenizerFast) -> FactTemplates:
        """Return the templates in the form in which the facts are taught and asked."""
        return in_form(self.templates, self.config, tokenizer)

    def fingerprint(self) -> str:
        """Hash the facts' rows, the templates, and the settings of training."""
        config = self.config
        settings: list[Any] = [
            config.relations,
            config.max_facts_per_answer,
            config.skip_facts,
            config.num_facts,
            config.answers_of_first,
            config.later_relations,
            config.subset_seed,
            config.statement_share,
            config.loss_on,
        ]
        form = [config.form, config.reply, config.on_contradiction]
        if form != ["auto", "statement", "warn"] or config.rephrasings:
            settings.append(form)  # else the hash is that of versions without these settings
        if config.rephrasings:
            settings.append(source_fingerprint(config.rephrasings))
        templates = [asdict(relation) for relation in self.templates.relations.values()]
        rows = source_fingerprint(config.source, embedded_facts)
        return hashlib.sha256(json.dumps([settings, templates, rows]).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield one question and one statement of each fact, with the templates in turn."""
        for index, fact in enumerate(self.facts):
            for wordings in (self.templates.questions(fact), self.templates.statements(fact)):
                if wordings:
                    yield wordings[index % len(wordings)].text

    def documents(self, row_format: RowFormat) -> FactDocuments:
        """Return the facts as documents, with a new wording in each epoch."""
        return FactDocuments(
            self.facts,
            self.worded(row_format.tokenizer),
            row_format.tokenizer,
            context_length=row_format.context_length,
            seed=row_format.seed,
            statement_share=self.config.statement_share,
            loss_on=self.config.loss_on,
        )

    def train_stream(self, row_format: RowFormat) -> EpochStream:
        """Return the training rows."""
        return EpochStream(self.documents(row_format), row_format.seed, row_format.context_length)

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return the questions; facts and wordings are drawn by `subset_seed` alone."""
        templates = self.worded(row_format.tokenizer)
        asked = {self.name: self.validation_questions(templates)}
        for name, source in self.config.validation_sources.items():
            facts = read_facts(source, self.templates)
            asked[name] = facts, [fact.question for fact in facts]
        return [
            question_evaluation(name, facts, questions, row_format, templates)
            for name, (facts, questions) in asked.items()
        ]

    def validation_questions(
        self, templates: FactTemplates | None = None
    ) -> tuple[list[Fact], list[str]]:
        """Draw the facts to ask and one question for each.

        Args:
            templates: The templates in the form in which the facts are asked; None: plain.

        Raises:
            ValueError: if no fact has a question of the required kind.
        """
        templates = templates or self.templates
        kind = self.config.validation_questions
        facts = [fact for fact in self.facts if templates.question_texts(fact, kind)]
        if not facts:
            raise ValueError(
                f"no fact in {describe(self.config.source)} has a {kind} question, since their "
                "relations are not in the templates: set facts.validation_questions to "
                "own_question, give rows `rephrase` or `held_out`, or give templates for them"
            )
        if self.config.validation_facts is not None:
            count = min(self.config.validation_facts, len(facts))
            facts = _draw(facts, count, self.config.subset_seed)
        rng = random.Random(self.config.subset_seed)
        return facts, [rng.choice(templates.question_texts(fact, kind)) for fact in facts]


class Facts(PackedDataModule):
    """Training and validation on facts alone; several facts share a row.

    Args:
        facts: Choice of facts, and how they are taught and asked.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        **kwargs: Further settings, those of `PackedDataModule`.
    """

    def __init__(
        self,
        facts: FactsConfig = FactsConfig(),
        *,
        data_dir: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            [FactsPart(facts, data_dir)],
            [1.0],
            **kwargs,
        )


def _draw(facts: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """Draw `count` facts, in their order."""
    kept = sorted(random.Random(seed).sample(range(len(facts)), count))
    return [facts[index] for index in kept]
