"""Rows to answer, and the `.jsonl` of their answers, which an interrupted command can resume."""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from triptych.commands.ask import as_messages
from triptych.commands.asked_model import AskedModel
from triptych.datamodules.sources.records import RecordSource, iterate_records
from triptych.metrics.question_answering import exact_match


@dataclass(frozen=True)
class PromptRow:
    """A row to answer.

    Attributes:
        fields: The row's known fields: `id`, `prompt` or `question`, `answers`.
    """

    fields: dict[str, Any]

    @property
    def text(self) -> str:
        """The prompt or question."""
        return str(self.fields.get("prompt") or self.fields["question"])

    def encode(self, model: AskedModel, template: str | None, system: str | None) -> list[int]:
        """Tokenise the row as a question by a chat template, or as text to continue."""
        if template is None:
            return model.encode_text(self.text)
        return model.encode_chat(as_messages(self.text, system), template)

    def answered(self, replies: Sequence[str]) -> dict[str, Any]:
        """Return the fields together with the replies."""
        made: dict[str, Any] = {"output": replies[0]} if len(replies) == 1 else {}
        made = made or {"outputs": list(replies)}
        if self.fields.get("answers"):
            first = replies[0].split("\n")[0].strip()  # as validation reads a reply
            made["exact_match"] = exact_match(first, self.fields["answers"])
        return self.fields | made


def read_prompts(path: str) -> list[PromptRow]:
    """Read the rows of a file.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it has an unknown format, no rows, or a row without prompt and question.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"--input: there is no file {path}")
    source = RecordSource(path, txt_lines="prompt")
    fields = {"id": str, "prompt": str, "question": str, "answers": list[str]}
    rows = [
        PromptRow({name: value for name, value in row.items() if value is not None})
        for row in iterate_records(source, {}, fields, None, _find_fault)
    ]
    if not rows:
        raise ValueError(f"--input {path} has no rows")
    return rows


def _find_fault(row: dict[str, Any]) -> str | None:
    if (row["prompt"] or row["question"] or "").strip():
        return None
    return "the row has neither a prompt nor a question"


class AnswerFile:
    """The answers, written batch by batch.

    Args:
        path: The file.
        asked: For all rows to answer, the fields that an answered row keeps.
        resume: Keep the answers in the file, which have to be those of the first rows. A line that
            an interruption has cut is dropped.
        score: Field with the score of an answered row, where the right answer is known.

    Attributes:
        num_done: Rows that were answered before.

    Raises:
        ValueError: if the file holds answers to other rows.
    """

    def __init__(
        self, path: Path, asked: Sequence[dict[str, Any]], resume: bool, score: str = "exact_match"
    ) -> None:
        self.path = path
        self._score = score
        kept = self._kept(asked) if resume and path.is_file() else []
        self.num_done = len(kept)
        self._scores = [float(row[score]) for row in kept if score in row]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_line(row) for row in kept), encoding="utf-8")
        self._file = path.open("a", encoding="utf-8")
        if kept:
            print(f"{len(kept):,} rows are answered already", file=sys.stderr)

    def _kept(self, asked: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        kept = [json.loads(line) for line in lines if line.endswith("\n")]
        fits = [
            {name: answered.get(name) for name in fields} == fields
            for answered, fields in zip(kept, asked, strict=False)
        ]
        if all(fits) and len(kept) <= len(asked):
            return kept
        wrong = [*fits, False].index(False) + 1
        raise ValueError(
            f"--resume: row {wrong} of {self.path} answers another row than that of this command: "
            "choose another --output, or give --overwrite"
        )

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()

    def write(self, answered: Sequence[dict[str, Any]]) -> None:
        """Append the answered rows of a batch."""
        for row in answered:
            if self._score in row:
                self._scores.append(float(row[self._score]))
            self._file.write(_line(row))
        self._file.flush()

    def score(self) -> str:
        """Return the share of right answers in words; empty if none are known."""
        if not self._scores:
            return ""
        share = sum(self._scores) / len(self._scores)
        name = self._score.replace("_", " ").capitalize()
        return f"{name} of {len(self._scores):,} rows with answers: {share:.3f}."


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False) + "\n"
