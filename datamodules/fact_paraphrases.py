"""The wordings in which a stream teaches its facts: templates, or paraphrases from a file."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from datamodules.fact_templates import Fact, FactTemplates, Rendering, statement_rendering
from datamodules.packed_datamodule import locate
from datamodules.records import RecordSource, describe, read_records, source_fingerprint

WordingKind = Literal["statements", "questions", "both"]


@dataclass(frozen=True)
class ParaphrasesConfig:
    """In which wordings facts are taught.

    Args:
        source: "templates": those of the fact's relation, and a statement of the source's own;
            "file": those in `file`.
        wordings: Which of the templates: "statements" (so that the questions asked in validation
            are new in form, too), "questions" (the training ones; held-out questions never teach),
            or "both". Facts without known wordings have but their own statement and question.
        file: For "file": rows with `id` (that of a fact) and `paraphrases` (a list of sentences,
            each naming one of the fact's answers).
        per_fact: Teach at most so many wordings of a fact in one visit, drawn anew in each pass;
            null: all.
    """

    source: Literal["templates", "file"] = "templates"
    wordings: WordingKind = "statements"
    file: RecordSource | None = None
    per_fact: int | None = None


class Paraphrases:
    """Finds the wordings of facts as a config has them.

    Args:
        config: Which wordings.
        templates: The wordings by relation.
        data_dir: Where relative paths start.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a setting is out of range or missing.
    """

    def __init__(
        self, config: ParaphrasesConfig, templates: FactTemplates, data_dir: str | None = None
    ) -> None:
        if config.per_fact is not None and config.per_fact < 1:
            raise ValueError(
                f"paraphrases.per_fact is {config.per_fact}: set it to at least 1, or null for all"
            )
        if (config.source == "file") != (config.file is not None):
            raise ValueError(
                f"paraphrases.source is {config.source!r} and paraphrases.file is "
                f"{'set' if config.file else 'null'}: set both (source: file, file: {{path: ...}}) "
                "or neither"
            )
        self.config = config
        self._templates = templates
        self._file = locate(config.file, data_dir) if config.file else None
        if self._file is not None and not self._file.hub_name:
            self._file.files()

    def fingerprint(self) -> str:
        """Hash what decides the wordings, but for the templates."""
        config = self.config
        rows = source_fingerprint(self._file) if self._file else None
        settings = [config.source, config.wordings, config.per_fact, rows]
        return hashlib.sha256(json.dumps(settings).encode()).hexdigest()

    def wordings(self, facts: Sequence[Fact]) -> list[list[Rendering]]:
        """List the wordings of each fact, at least one, statements first.

        Raises:
            ValueError: if a fact has none.
        """
        if self._file is not None:
            found = self._from_file(facts, self._file)
            mend = f"give paraphrases for it in {describe(self._file)}, or leave the fact out"
        else:
            found = [self._from_templates(fact) for fact in facts]
            mend = (
                'set paraphrases.wordings to "both", choose facts.relations that the templates '
                "know, or give paraphrases in a file"
            )
        for fact, wordings in zip(facts, found, strict=True):
            if not wordings:
                raise ValueError(f"fact {fact.id!r} has no wording to be taught in: {mend}")
        return found

    def _from_templates(self, fact: Fact) -> list[Rendering]:
        kind = self.config.wordings
        statements = self._templates.statements(fact) if kind != "questions" else []
        questions = self._templates.questions(fact) if kind != "statements" else []
        return [*statements, *questions]

    def _from_file(self, facts: Sequence[Fact], file: RecordSource) -> list[list[Rendering]]:
        by_id = {fact.id: fact for fact in facts}

        def find_fault(row: dict[str, Any]) -> str | None:
            fact = by_id.get(row["id"])
            if fact is None:
                return None  # of another fact, such as one that is not among the chosen
            for paraphrase in row["paraphrases"]:
                if statement_rendering(paraphrase, fact.answers) is None:
                    return (
                        f"field 'paraphrases': {paraphrase!r} names none of the answers "
                        f"{list(fact.answers)}"
                    )
            return None

        wordings: dict[str, list[Rendering]] = {fact.id: [] for fact in facts}
        required = {"id": str, "paraphrases": list[str]}
        for row in read_records(file, required, row_check=find_fault):
            for paraphrase in row["paraphrases"] if row["id"] in by_id else []:
                rendering = statement_rendering(paraphrase, by_id[row["id"]].answers)
                if rendering is not None:
                    wordings[row["id"]].append(rendering)
        return list(wordings.values())
