"""Paraphrases: the wordings that a stream of facts teaches, from templates, a file or a model."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.remember.facts.answer_place import fault_of
from triptych.datamodules.remember.facts.fact_documents import LossOn
from triptych.datamodules.remember.facts.fact_templates import (
    Fact,
    FactTemplates,
    Rendering,
    statement_rendering,
)
from triptych.datamodules.remember.rewriting import RewriterConfig, rewriter_fingerprint, rewritten
from triptych.datamodules.sources.records import (
    RecordSource,
    describe,
    read_records,
    source_fingerprint,
)

QUESTION_MARKS = ("?", "？", "؟")
WordingKind = Literal["statements", "questions", "both"]


@dataclass(frozen=True)
class ParaphrasesConfig:
    """Choice of the wordings in which facts are taught.

    Args:
        source: "templates": the templates of the fact's relation, and the source's statement;
            "file": the sentences in `file`; "model": the first statement, and its rewrites by
            `model`.
        wordings: Forms taken from the templates: "statements" (a question is then new in form),
            "questions" (those for training; held-out ones are never taught), or "both". Facts
            without templates have only the source's statement and questions. Null: "both" in chat
            form, where statements alone would not be known when asked; else "statements".
        file: For "file": rows with `id` (of a fact) and `paraphrases` (a list of sentences, each of
            which contains one of the fact's answers, or questions). Rows of other facts are
            skipped. In chat form, the fact's questions are taught as well, unless `wordings` is
            "statements".
        model: For "model": the model and its instruction.
        per_fact: Teach at most this many wordings of a fact in one visit, drawn anew in each pass;
            null: all.
    """

    source: Literal["templates", "file", "model"] = "templates"
    wordings: WordingKind | None = None
    file: RecordSource | None = None
    model: RewriterConfig | None = None
    per_fact: PositiveInt | None = None


class Paraphrases:
    """Finds the paraphrases of facts for a config.

    With the loss on the answer alone, a wording that begins with its answer teaches nothing: it is
    refused in a file and skipped elsewhere.

    A model's sentence is kept if it contains the fact's subject and, after it, one of its answers.
    It may still be untrue. A fact without such a sentence has its first statement alone.

    Args:
        config: Choice of the wordings.
        templates: The templates by relation.
        loss_on: Position of the loss.
        data_dir: Folder of data; see `data_paths`.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if settings do not fit together.
    """

    def __init__(
        self,
        config: ParaphrasesConfig,
        templates: FactTemplates,
        loss_on: LossOn = "answer",
        data_dir: str | None = None,
    ) -> None:
        for name, value, example in [
            ("file", config.file, "{path: my/paraphrases.jsonl}"),
            ("model", config.model, "{name: google/flan-t5-base}"),
        ]:
            if (config.source == name) != (value is not None):
                raise ValueError(
                    f"paraphrases.source is {config.source!r}, but paraphrases.{name} is "
                    f"{'null' if value is None else 'set'}: for paraphrases from a {name}, set "
                    f"source to {name} and {name} to such as {example}; else leave {name} out"
                )
        self.config = config
        self._templates = templates
        self._answer_only = loss_on == "answer"
        self._file = locate(config.file, data_dir) if config.file else None
        if self._file is not None and not self._file.hub_name:
            self._file.files()

    def fingerprint(self) -> str:
        """Hash the settings and sources of the wordings, without the templates."""
        config = self.config
        rows = source_fingerprint(self._file) if self._file else None
        model = rewriter_fingerprint(config.model) if config.model else None
        # Null hashes as versions did that had "statements" for it.
        wordings = config.wordings or "statements"
        settings = [config.source, wordings, config.per_fact, rows, model]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def wordings(
        self, facts: Sequence[Fact], cache_dir: Path, templates: FactTemplates | None = None
    ) -> list[list[Rendering]]:
        """List the wordings of each fact, at least one, statements first.

        Args:
            facts: The facts to teach.
            cache_dir: Folder of a model's cached sentences.
            templates: The templates in the form in which facts are taught; None: in plain form.

        Raises:
            ValueError: if a fact has none.
        """
        templates = templates or self._templates
        kind = self.config.wordings or ("both" if templates.chat else "statements")
        remedy = (
            "choose facts.relations that the templates know, give the facts a `statement`, or take "
            "paraphrases from a file"
        )
        if self._file is not None:
            found = self._from_file(facts, self._file, templates)
            remedy = f"give paraphrases of it in {describe(self._file)}, or leave the fact out"
        elif self.config.model is not None:
            found = self._from_model(facts, self.config.model, cache_dir)
        else:
            found = [self._from_templates(fact, kind, templates) for fact in facts]
            if kind == "statements":
                remedy = f'set paraphrases.wordings to "both", {remedy}'
        if templates.chat and kind != "statements" and self.config.source != "templates":
            asked = [self._from_templates(fact, "questions", templates) for fact in facts]
            found = [[*own, *added] for own, added in zip(found, asked, strict=True)]
        for fact, wordings in zip(facts, found, strict=True):
            if not wordings:
                raise ValueError(f"fact {fact.id!r} has no wording to be taught in: {remedy}")
        return found

    def _from_templates(
        self, fact: Fact, kind: WordingKind, templates: FactTemplates
    ) -> list[Rendering]:
        statements = templates.statements(fact) if kind != "questions" else []
        questions = templates.questions(fact) if kind != "statements" else []
        return [wording for wording in (*statements, *questions) if self._teaches(wording)]

    def _from_file(
        self, facts: Sequence[Fact], file: RecordSource, templates: FactTemplates
    ) -> list[list[Rendering]]:
        by_id = {fact.id: fact for fact in facts}

        def find_fault(row: dict[str, Any]) -> str | None:
            fact = by_id.get(row["id"])
            if fact is None:
                return None
            for paraphrase in row["paraphrases"]:
                if paraphrase.rstrip().endswith(QUESTION_MARKS):
                    continue
                rendering = statement_rendering(paraphrase, fact.answers)
                if rendering is None:
                    wrong = fault_of(paraphrase, fact.answers)
                elif not self._teaches(rendering):
                    wrong = (
                        "begins with its answer, so that nothing leads to it: rephrase it, or set "
                        "facts.loss_on to all"
                    )
                else:
                    continue
                return f"field 'paraphrases': {paraphrase!r} {wrong}"
            return None

        wordings: dict[str, list[Rendering]] = {fact.id: [] for fact in facts}
        required = {"id": str, "paraphrases": list[str]}
        for row in read_records(file, required, row_check=find_fault):
            for paraphrase in row["paraphrases"] if row["id"] in by_id else []:
                if paraphrase.rstrip().endswith(QUESTION_MARKS):
                    question = templates.asked(by_id[row["id"]], paraphrase.strip())
                    wordings[row["id"]].append(question)
                    continue
                rendering = statement_rendering(paraphrase, by_id[row["id"]].answers)
                if rendering is not None:
                    wordings[row["id"]].append(rendering)
        return [wordings[fact.id] for fact in facts]

    def _from_model(
        self, facts: Sequence[Fact], model: RewriterConfig, cache_dir: Path
    ) -> list[list[Rendering]]:
        own = [self._from_templates(fact, "statements", self._templates)[:1] for fact in facts]
        stated = [index for index, statements in enumerate(own) if statements]
        rewrites = rewritten([own[index][0].text for index in stated], model, cache_dir)
        wordings = [list(statements) for statements in own]
        for index, texts in zip(stated, rewrites, strict=True):
            for text in texts:
                rendering = _kept(text, facts[index])
                if rendering is not None and rendering not in wordings[index]:
                    wordings[index].append(rendering)
        return wordings

    def _teaches(self, rendering: Rendering) -> bool:
        return rendering.chat or bool(rendering.prompt) or not self._answer_only


def _kept(text: str, fact: Fact) -> Rendering | None:
    """Cut a model's sentence at the answer, if its first line keeps subject and answer."""
    rendering = statement_rendering(text.split("\n")[0].strip(), fact.answers)
    if rendering is None or not rendering.prompt:
        return None
    subject = (fact.subject or "").casefold()
    return rendering if subject in rendering.prompt.casefold() else None
