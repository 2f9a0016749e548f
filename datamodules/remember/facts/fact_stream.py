"""A stream of facts: one after another, each with all its paraphrases, padded and never packed.

    the facts of a `FactsConfig`                                        `facts.FactsPart`
      -> each with its paraphrases                                      `fact_paraphrases`
      -> one visit a batch                                              `visits`
      -> asked by held-out questions                                    `fact_questions`

Sparse Memory Finetuning learns TriviaQA's facts this way (2510.15103, section 5): one fact a batch.
"""

import hashlib
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from jsonargparse.typing import PositiveInt
from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.evaluation_loader import Evaluation
from triptych.datamodules.batches.packed_datamodule import RowFormat
from triptych.datamodules.batches.packing import Document
from triptych.datamodules.batches.visit_datamodule import VisitDataModule, VisitedPart
from triptych.datamodules.batches.visits import VisitSource
from triptych.datamodules.remember.facts.fact_documents import (
    LossOn,
    check_length,
    encode_rendering,
)
from triptych.datamodules.remember.facts.fact_paraphrases import Paraphrases, ParaphrasesConfig
from triptych.datamodules.remember.facts.fact_questions import completion_evaluation
from triptych.datamodules.remember.facts.fact_templates import Fact, FactTemplates, Rendering
from triptych.datamodules.remember.facts.facts import (
    FactsConfig,
    FactsPart,
    choose_facts,
    facts_of,
)

# Characters that may follow the answer of a statement to complete.
CLOSING = " .!\"'”’)"


class FactVisits(VisitSource):
    """Facts with their paraphrases as documents.

    Args:
        facts: The facts to teach.
        wordings: The paraphrases of each fact.
        tokenizer: A tokenizer with BOS and EOS.
        context_length: Maximum length of a document in tokens.
        per_fact: Maximum number of wordings in one visit, drawn by (seed, pass, fact); None: all.
        seed: Seed of the draws.
        loss_on: Position of the labels; see `fact_documents.encode_rendering`.

    Raises:
        ValueError: if a wording is longer than the context.
    """

    def __init__(
        self,
        facts: Sequence[Fact],
        wordings: Sequence[Sequence[Rendering]],
        tokenizer: PreTrainedTokenizerFast,
        *,
        context_length: int,
        per_fact: int | None = None,
        seed: int = 0,
        loss_on: LossOn = "answer",
    ) -> None:
        self.ids = [fact.id for fact in facts]
        self.wordings = [list(renderings) for renderings in wordings]
        self._per_fact = per_fact
        self._seed = seed
        self._documents: list[list[Document]] = []
        for fact, renderings in zip(facts, wordings, strict=True):
            documents = [encode_rendering(tokenizer, r, loss_on) for r in renderings]
            for document in documents:
                check_length(fact, document, context_length)
            self._documents.append(documents)

    def documents(self, index: int, pass_number: int) -> list[Document]:
        """Return the documents of fact `index` in one pass."""
        return [self._documents[index][place] for place in self.taught(index, pass_number)]

    def taught(self, index: int, pass_number: int) -> list[int]:
        """Return the indices of the wordings that teach fact `index` in one pass."""
        count = len(self._documents[index])
        if self._per_fact is None or count <= self._per_fact:
            return list(range(count))
        rng = random.Random(f"{self._seed}/{pass_number}/{index}")
        return sorted(rng.sample(range(count), self._per_fact))


class FactStreamPart(VisitedPart[FactVisits]):
    """The facts, their paraphrases and questions; arguments are those of `FactStream`."""

    name = FactsPart.name
    chat_template = FactsPart.chat_template
    statements_name = "statements"

    def __init__(
        self,
        facts: FactsConfig,
        paraphrases: ParaphrasesConfig,
        facts_per_batch: int,
        steps_per_visit: int,
        shuffle: bool,
        ask_statements: bool,
        data_dir: str | None,
    ) -> None:
        super().__init__(facts_per_batch, steps_per_visit, shuffle)
        if self.statements_name in facts.validation_sources:
            raise ValueError(
                f"facts.validation_sources has an entry {self.statements_name!r}, but that is the "
                "name under which the taught statements are completed: choose another name"
            )
        self._asked = FactsPart(facts, data_dir)
        self._paraphrases = Paraphrases(paraphrases, self._asked.templates, facts.loss_on, data_dir)
        self._ask_statements = ask_statements

    @property
    def facts(self) -> list[Fact]:
        """The facts to teach, which a batch's `group` indexes."""
        return self._asked.facts

    @cached_property
    def skipped_facts(self) -> list[Fact]:
        """The first `skip_facts` facts, which a pretrained model was taught.

        Raises:
            ValueError: if the stream skips no facts.
        """
        config = self._asked.config
        if not config.skip_facts:
            raise ValueError(
                "the stream's facts.skip_facts is 0, so there are no skipped facts to ask: set the "
                "probe's `facts`, or teach later facts"
            )
        before = replace(
            config,
            skip_facts=0,
            num_facts=config.skip_facts,
            answers_of_first=None,
            later_relations=None,
        )
        return choose_facts(facts_of(config, self.templates), before, self.templates)

    @property
    def templates(self) -> FactTemplates:
        """The templates by relation."""
        return self._asked.templates

    def worded(self, tokenizer: PreTrainedTokenizerFast) -> FactTemplates:
        """Return the templates in the form in which the facts are taught and asked."""
        return self._asked.worded(tokenizer)

    def asked_in(self, tokenizer: PreTrainedTokenizerFast) -> str | None:
        """Return the plain form as a chat template; None if the tokenizer's own is used."""
        return self._asked.asked_in(tokenizer)

    def fingerprint(self) -> str:
        """Hash the facts, their paraphrases and their order."""
        settings = [self._asked.fingerprint(), self._paraphrases.fingerprint(), self.order]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def tokenizer_texts(self) -> Iterator[str]:
        """Yield texts of the facts, for a run that trains its tokenizer."""
        return self._asked.tokenizer_texts()

    def make_visits(self, row_format: RowFormat) -> FactVisits:
        """Return the facts with their documents."""
        return FactVisits(
            self.facts,
            self._paraphrases.wordings(
                self.facts, row_format.cache_dir, self.worded(row_format.tokenizer)
            ),
            row_format.tokenizer,
            context_length=row_format.context_length,
            per_fact=self._paraphrases.config.per_fact,
            seed=row_format.seed,
            loss_on=self._asked.config.loss_on,
        )

    def evaluations(self, row_format: RowFormat) -> list[Evaluation]:
        """Return the questions, and the taught statements to complete."""
        evaluations = self._asked.evaluations(row_format)
        if self._ask_statements and (statements := self.statements(row_format)):
            name, facts = self.statements_name, [fact for fact, _ in statements]
            renderings = [rendering for _, rendering in statements]
            evaluations.append(completion_evaluation(name, facts, renderings, row_format))
        return evaluations

    def statements(self, row_format: RowFormat) -> list[tuple[Fact, Rendering]]:
        """Draw, for each fact that is asked, one of the statements that the first pass teaches."""
        visits = self.visits(row_format)
        templates = self.worded(row_format.tokenizer)
        asked = {fact.id for fact in self._asked.validation_questions(templates)[0]}
        rng = random.Random(self._asked.config.subset_seed)
        drawn = []
        for index, fact in enumerate(self.facts):
            taught = [visits.wordings[index][place] for place in visits.taught(index, 0)]
            questions = templates.questions(fact)
            # A statement is asked only if its answer is last, and something precedes it.
            statements = [
                r
                for r in taught
                if r not in questions and r.prompt and not r.remainder.strip(CLOSING)
            ]
            if fact.id in asked and statements:
                drawn.append((fact, rng.choice(statements)))
        return drawn


class FactStream(VisitDataModule):
    """Facts one after another, for a model that has learned other facts before.

    Every batch is a visit to one fact (or a few) with all its paraphrases, one a row, padded and
    never packed. An epoch is one pass over the facts, so `trainer.max_epochs` is the number of
    passes. Validation asks the facts by held-out questions (`val/facts/...`), and lets the model
    complete statements that were taught (`val/statements/...`).

    Several processes divide the wordings of a visit among them: a step teaches as many facts as on
    a single process.

    Args:
        facts: The facts to teach and to ask; `statement_share` has no effect.
        paraphrases: The wordings in which they are taught.
        facts_per_batch: Facts taught together in one batch of all processes.
        steps_per_visit: Consecutive batches that repeat the same facts.
        shuffle: Whether the order is drawn by `seed`, anew for each pass; false: the source's.
        ask_statements: Whether validation also asks to complete taught statements.
        data_dir: Folder of relative paths that lead nowhere from the working directory; null: the
            environment's TRIPTYCH_DATA, or ./data.
        context_length: Maximum length of a wording in tokens; a fact is never cut.
        **kwargs: Further settings, those of `VisitDataModule`.
    """

    part: FactStreamPart

    def __init__(
        self,
        facts: FactsConfig = FactsConfig(),  # noqa: B008 (frozen)
        paraphrases: ParaphrasesConfig = ParaphrasesConfig(),  # noqa: B008 (frozen)
        facts_per_batch: PositiveInt = 1,
        steps_per_visit: PositiveInt = 1,
        shuffle: bool = True,
        ask_statements: bool = True,
        *,
        data_dir: str | None = None,
        context_length: PositiveInt = 128,
        **kwargs: Any,
    ) -> None:
        part = FactStreamPart(
            facts, paraphrases, facts_per_batch, steps_per_visit, shuffle, ask_statements, data_dir
        )
        super().__init__(part, context_length=context_length, **kwargs)

    @property
    def facts(self) -> list[Fact]:
        """The facts to teach, which a batch's `group` indexes."""
        return self.part.facts
