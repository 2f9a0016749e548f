"""Facts to ask a model: by a question, or by a statement to complete.

    Fact(subject="France", answers=("Paris", ...))
      -> "Question: Which city is the capital of France? Answer:"   " Paris"  and the end
      -> "The capital of France is"                                 " Paris"
      -> in chat form, the question as a user's message, and the reply that is taught

The facts are those of a source, or those that the run's data teach, in the order of their visits.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.packed_datamodule import RowFormat, locate
from triptych.datamodules.batches.prompted_documents import Continuation
from triptych.datamodules.batches.visit_datamodule import VisitDataModule
from triptych.datamodules.remember.facts.fact_rows import read_facts
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    QuestionSet,
    Rendering,
)
from triptych.datamodules.remember.facts.facts import (
    FactsConfig,
    choose_facts,
    facts_of,
    in_form,
    located,
    read_templates,
)
from triptych.datamodules.sources.records import RecordSource, describe

Wording = QuestionSet | Literal["statement"]


@dataclass(frozen=True)
class AskedFact:
    """A fact in one wording.

    Attributes:
        answers: Accepted answers.
        continuations: Each answer as a continuation of the prompt, the taught one first.
        visit: Number of the first visit that teaches the fact, from 0; None if unknown.
    """

    answers: tuple[str, ...]
    continuations: tuple[Continuation, ...]
    visit: int | None = None

    @property
    def in_chat(self) -> bool:
        """Whether it is asked in the tokenizer's chat template."""
        return self.continuations[0].chat

    @property
    def prompt(self) -> str:
        """The text that the model continues."""
        return self.continuations[0].prompt


def ask_source(
    source: RecordSource, prompt: str, data_dir: str | None, chat: bool = False
) -> list[AskedFact]:
    """Ask the questions of a source (rows with `question` and `answers`) as they are.

    Args:
        source: The rows.
        prompt: The prompt, with {question} in place of the question; in chat form, the message.
        data_dir: Folder of data; see `data_paths`.
        chat: Whether to ask in chat form; the reply is then the answer.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed (file, line and field are named), or there is none.
    """
    return [
        AskedFact(
            fact.answers,
            tuple(
                Continuation(
                    prompt.replace("{question}", fact.question),
                    answer if chat else f" {answer}",
                    ends=True,
                    chat=chat,
                )
                for answer in fact.answers
            ),
        )
        for fact in read_facts(locate(source, data_dir), FactTemplates([]))
    ]


def ask_facts(
    config: FactsConfig,
    wording: Wording,
    seed: int,
    data_dir: str | None,
    tokenizer: PreTrainedTokenizerFast | None = None,
) -> list[AskedFact]:
    """Ask the facts of a config, each in one wording drawn by `seed`.

    Facts without such a wording are left out.

    Args:
        config: The facts.
        wording: Kind of the wordings.
        seed: Seed of the draws.
        data_dir: Folder of data; see `data_paths`.
        tokenizer: Decides between plain and chat form by `config.form`; None: plain form.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed, the config chooses more than there is, or no fact has
            such a wording.
    """
    templates = read_templates(config.templates, data_dir)
    if tokenizer is not None:
        templates = in_form(templates, config, tokenizer)
    config = located(config, data_dir)
    facts = choose_facts(facts_of(config, templates), config, templates)
    statements = [templates.statements(fact) for fact in facts]
    asked = _ask(facts, statements, templates, wording, seed, [None] * len(facts))
    return _at_least_one(asked, wording, describe(config.source))


def ask_taught_facts(
    datamodule: Any, wording: Wording, seed: int, row_format: RowFormat
) -> list[AskedFact]:
    """Ask the facts that a stream teaches, each in one wording drawn by `seed`.

    Statements are drawn from those that the first pass teaches.

    Args:
        datamodule: A `fact_stream.FactStream`.
        wording: Kind of the wordings.
        seed: Seed of the draws.
        row_format: The tokenizer.

    Raises:
        ValueError: if the datamodule is no stream of facts, or no fact has such a wording.
    """
    part = _stream_of_facts(datamodule)
    row_format = replace(row_format, seed=datamodule.seed, context_length=datamodule.context_length)
    source, stream = part.visits(row_format), part.train_stream(row_format)
    facts: list[Fact] = datamodule.facts
    templates = part.worded(row_format.tokenizer)
    statements = []
    for index, fact in enumerate(facts):
        questions = templates.questions(fact)
        taught = [source.wordings[index][place] for place in source.taught(index, 0)]
        statements.append([rendering for rendering in taught if rendering not in questions])
    visit_of: dict[int, int] = {}
    for visit, _ in stream.read():
        if visit.number == stream.visits_per_pass:
            break
        visit_of |= dict.fromkeys(visit.items, visit.number)
    visits = [visit_of[index] for index in range(len(facts))]
    asked = _ask(facts, statements, templates, wording, seed, visits)
    return _at_least_one(asked, wording, "the stream")


def worded_facts(
    config: FactsConfig | None,
    datamodule: Any,
    data_dir: str | None,
    tokenizer: PreTrainedTokenizerFast,
) -> tuple[list[Fact], FactTemplates]:
    """Return facts, and the templates in the form in which they are asked.

    Args:
        config: The facts; None: those that the datamodule teaches.
        datamodule: A `fact_stream.FactStream`; read only without a config.
        data_dir: Folder of data; see `data_paths`.
        tokenizer: Decides between plain and chat form.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed, or there is neither a config nor a stream of facts.
    """
    if config is None:
        part = _stream_of_facts(datamodule)
        return list(part.facts), part.worded(tokenizer)
    templates = in_form(read_templates(config.templates, data_dir), config, tokenizer)
    config = located(config, data_dir)
    return choose_facts(facts_of(config, templates), config, templates), templates


def ask_skipped_facts(
    datamodule: Any, wording: Wording, seed: int, tokenizer: PreTrainedTokenizerFast | None = None
) -> list[AskedFact]:
    """Ask the facts that a stream skips, each in one wording drawn by `seed`.

    Args:
        datamodule: A `fact_stream.FactStream`.
        wording: Kind of the wordings.
        seed: Seed of the draws.
        tokenizer: Decides between plain and chat form; None: plain form.

    Raises:
        ValueError: if the datamodule is no stream of facts, it skips none, or no fact has such a
            wording.
    """
    part = _stream_of_facts(datamodule)
    facts: list[Fact] = part.skipped_facts
    templates = part.templates if tokenizer is None else part.worded(tokenizer)
    statements = [templates.statements(fact) for fact in facts]
    asked = _ask(facts, statements, templates, wording, seed, [None] * len(facts))
    return _at_least_one(asked, wording, "the facts that the stream skips")


def _stream_of_facts(datamodule: Any) -> Any:
    """Return the part that teaches the facts."""
    if not (isinstance(datamodule, VisitDataModule) and hasattr(datamodule, "facts")):
        raise ValueError(
            f"the data ({type(datamodule).__name__}) are no stream of facts, so what they "
            "teach cannot be asked: set the probe's `facts`, or train on "
            "triptych.datamodules.remember.facts.fact_stream.FactStream"
        )
    return datamodule.part


def _ask(
    facts: Sequence[Fact],
    statements: Sequence[Sequence[Rendering]],
    templates: FactTemplates,
    wording: Wording,
    seed: int,
    visits: Sequence[int | None],
) -> list[AskedFact]:
    asked = []
    for fact, stated, visit in zip(facts, statements, visits, strict=True):
        rng = random.Random(f"{seed}/{fact.id}")
        if wording == "statement":
            # A statement that begins with its answer leaves nothing to complete.
            choices = [statement for statement in stated if statement.prompt]
        else:
            texts = templates.question_texts(fact, wording)
            choices = [templates.asked(fact, text) for text in texts]
        if choices:
            rendering = rng.choice(choices)
            continuations = _continuations(fact, rendering, ends=wording != "statement")
            asked.append(AskedFact(fact.answers, continuations, visit))
    return asked


def _continuations(fact: Fact, rendering: Rendering, ends: bool) -> tuple[Continuation, ...]:
    """List the rendering's answer, then the other accepted answers in its place."""
    if rendering.chat:
        replies = dict.fromkeys([rendering.reply, *fact.answers, *(f"{a}." for a in fact.answers)])
        return tuple(Continuation(rendering.prompt, reply, ends, chat=True) for reply in replies)
    own = rendering.answer.lstrip()
    space = rendering.answer.removesuffix(own)
    texts = dict.fromkeys([rendering.answer, *(space + answer for answer in fact.answers)])
    return tuple(Continuation(rendering.prompt, text, ends) for text in texts)


def _at_least_one(asked: list[AskedFact], wording: Wording, source: str) -> list[AskedFact]:
    if not asked:
        raise ValueError(
            f"no fact in {source} has a wording of the kind {wording}, since their relations are "
            "not in the templates: set the probe's `wording` to own_question, or give templates "
            "for them"
        )
    return asked
