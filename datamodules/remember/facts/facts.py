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

from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import (
    DataPart,
    PackedDataModule,
    RowFormat,
    locate,
)
from triptych.datamodules.batches.row_stream import EpochStream
from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.facts.fact_choice import cap_answers, draw, of_relations
from triptych.datamodules.remember.facts.fact_documents import FactDocuments, LossOn
from triptych.datamodules.remember.facts.fact_questions import question_evaluation
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    QuestionSet,
    statement_rendering,
)
from triptych.datamodules.remember.facts.question_template import QUESTION_TEMPLATE
from triptych.datamodules.sources.data_paths import data_path
from triptych.datamodules.sources.records import (
    RecordSource,
    describe,
    read_records,
    refuse_shared_files,
    source_fingerprint,
)


@dataclass(frozen=True)
class FactsConfig:
    """Choice of facts, and how they are taught and asked.

    Args:
        source: Rows with `question` and `answers`, and perhaps `id`, `first_answer` (the answer to
            teach, if it is not the first of `answers`), `statement`, `relation` and `subject`.
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


def read_facts(source: RecordSource, templates: FactTemplates) -> list[Fact]:
    """Read facts; fill in the subjects that follow from the question.

    Facts without an id are numbered.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed: file, line and field are named.
    """
    rows = read_records(
        source,
        required={"question": str, "answers": list[str]},
        optional=dict.fromkeys(["id", "first_answer", "statement", "relation", "subject"], str),
        embedded=embedded_facts,
        row_check=_find_fault,
    )
    facts = []
    for number, row in enumerate(rows, start=1):
        fact = Fact(
            id=row["id"] or f"row {number}",
            question=row["question"].strip(),
            answers=_accepted_answers(row),
            statement=row["statement"],
            relation=row["relation"],
            subject=row["subject"],
        )
        facts.append(templates.with_subject(fact))
    return facts


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
        source = locate(config.source, data_dir)
        refuse_shared_files([source], further.values())
        self.config = replace(config, source=source, validation_sources=further)
        self.templates = read_templates(config.templates, data_dir)

    @cached_property
    def facts(self) -> list[Fact]:
        """The facts to teach."""
        facts = read_facts(self.config.source, self.templates)
        return choose_facts(facts, self.config, self.templates)

    def fingerprint(self) -> str:
        """Hash the facts' rows, the templates, and the settings of training."""
        config = self.config
        settings = [
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
            self.templates,
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
        asked = {self.name: self.validation_questions()}
        for name, source in self.config.validation_sources.items():
            facts = read_facts(source, self.templates)
            asked[name] = facts, [fact.question for fact in facts]
        return [question_evaluation(name, *pair, row_format) for name, pair in asked.items()]

    def validation_questions(self) -> tuple[list[Fact], list[str]]:
        """Draw the facts to ask and one question for each.

        Raises:
            ValueError: if no fact has a question of the required kind.
        """
        kind = self.config.validation_questions
        facts = [fact for fact in self.facts if self.templates.question_texts(fact, kind)]
        if not facts:
            raise ValueError(
                f"no fact in {describe(self.config.source)} has a {kind} question, since their "
                "relations are not in the templates: set facts.validation_questions to "
                "own_question, or give templates for them"
            )
        if self.config.validation_facts is not None:
            count = min(self.config.validation_facts, len(facts))
            facts = _draw(facts, count, self.config.subset_seed)
        rng = random.Random(self.config.subset_seed)
        return facts, [rng.choice(self.templates.question_texts(fact, kind)) for fact in facts]


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


def _find_fault(row: dict[str, Any]) -> str | None:
    """Return the fault of a row with correct types, or None."""
    if not row["question"].strip():
        return "field 'question' is empty"
    answers = _accepted_answers(row)
    if not answers:
        return "field 'answers' is empty: give at least one accepted answer"
    if row["statement"] and statement_rendering(row["statement"], answers) is None:
        return f"field 'statement' names none of the answers {list(answers)}"
    return None


def _accepted_answers(row: dict[str, Any]) -> tuple[str, ...]:
    """List the different answers, the one to teach first."""
    answers = [row["first_answer"] or "", *row["answers"]]
    return tuple(dict.fromkeys(answer.strip() for answer in answers if answer.strip()))


def _draw(facts: Sequence[Fact], count: int, seed: int) -> list[Fact]:
    """Draw `count` facts, in their order."""
    kept = sorted(random.Random(seed).sample(range(len(facts)), count))
    return [facts[index] for index in kept]
