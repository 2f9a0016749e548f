"""``predict`` with an export of agents: they answer together, as their validation had them do."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from triptych.callbacks.exporting.export_kind import kind_of_export
from triptych.commands.answer_file import AnswerFile
from triptych.commands.asked_system import AskedSystem, require_adapter
from triptych.commands.exported_task import (
    build_task,
    exported_settings,
    task_settings,
    with_source,
)
from triptych.commands.options import CommandParser
from triptych.datamodules.commune.debate_task import DebateTask, Question
from triptych.datamodules.sources.records import RecordSource, iterate_records
from triptych.lit_modules.commune.debate_evaluation import (
    common_answers,
    has_own_answers,
    majority_replies,
)

Replies = list[list[str]]

# Options of `predict` that fit language models alone.
_OF_TEXT = ("temperature", "system", "raw", "template")


def predict_debates(
    folder: Path, output: Path, options: argparse.Namespace, parser: CommandParser
) -> Path:
    """Answer a file, or fresh questions of the task, with agents.

    Args:
        folder: Export of agents, or of an adapter of thoughts.
        output: File to write.
        options: Those of ``predict``.
        parser: Reports wrong options.

    Raises:
        ValueError: if the export has no adapter, its task is not trusted or reads no file, or a row
            is malformed.

    Returns:
        The file.
    """
    if given := [name for name in _OF_TEXT if getattr(options, name)]:
        parser.error(
            f"--{given[0]} fits a language model: agents give their most likely reply, in the form "
            "of their task"
        )
    if kind_of_export(folder) == "thoughts":
        require_adapter(folder)
    settings = exported_settings(folder)
    task, fields, questions = _questions(folder, settings, options, parser)
    if options.max_new_tokens is not None:
        task.max_new_tokens = options.max_new_tokens
    with AnswerFile(output, fields, options.resume, score="accuracy") as answers:
        todo = questions[answers.num_done :]
        if todo:
            system = AskedSystem(folder, options.device, task)
            console = Console(stderr=True)
            starts = range(0, len(todo), options.batch_size)
            for start in track(
                starts, "answering", console=console, disable=not sys.stderr.isatty()
            ):
                asked = todo[start : start + options.batch_size]
                first = answers.num_done + start
                known = fields[first : first + len(asked)]
                made = _rows(task, system.agents.names, asked, system.answer(asked))
                answers.write([own | row for own, row in zip(known, made, strict=True)])
    print(
        f"{len(questions):,} questions answered in {output}. {answers.score()}".strip(),
        file=sys.stderr,
    )
    return output


def _questions(
    folder: Path,
    settings: dict[str, Any],
    options: argparse.Namespace,
    parser: CommandParser,
) -> tuple[DebateTask, list[dict[str, Any]], list[Question]]:
    """Return the task, the fields that identify each question in the output, and the questions."""
    number, made_from = options.samples or 0, task_settings(folder, settings)
    arguments = made_from["init_args"]
    if options.input is not None:
        if number:
            parser.error("--samples and --input exclude each other: each row gets one answer")
        if not Path(options.input).is_file():
            raise FileNotFoundError(f"--input: there is no file {options.input}")
        arguments = with_source(arguments, options.input)
    if "num_val" in arguments and number:
        arguments["num_val"] = number
    if "seed" in arguments and number:
        arguments["seed"] += options.seed
    task = build_task(folder, made_from | {"init_args": arguments})
    name = type(task).__name__
    if options.input is None:
        if type(task).read_questions is not DebateTask.read_questions:
            parser.error(f"--input is missing: {name} reads a file of questions")
        if not number:
            parser.error(f"--samples is missing: {name} makes its questions, give their number")
        questions = task.questions("test")[:number]
        if len(questions) < number:
            raise ValueError(f"--samples {number}: {name} has {len(questions)} questions to test")
        return task, [_fields(question) for question in questions], questions
    source = RecordSource(options.input, txt_lines="question")
    found = task.read_questions(source)
    if found is None:
        raise ValueError(
            f"{name} makes its questions and reads no file: give --samples 10 in place of --input, "
            "or let the task implement read_questions"
        )
    if not found:
        raise ValueError(f"--input {options.input} has no rows")
    ids = [row["id"] for row in iterate_records(source, {}, {"id": str}, None)]
    fields = [
        ({} if key is None else {"id": key}) | _fields(question)
        for key, question in zip(ids, found, strict=True)
    ]
    return task, fields, found


def _fields(question: Question) -> dict[str, Any]:
    """Return what is asked: the question, or the evidence of each agent."""
    seen = [asdict(one) if is_dataclass(one) else one for one in question.evidence]  # type: ignore[arg-type]
    if len(seen) == 1:
        return {"question": seen[0] if isinstance(seen[0], str) else _plain(seen[0])}
    return {"evidence": [_plain(one) for one in seen]}


def _plain(value: Any) -> Any:
    """Return a value as JSON gives it back."""
    return json.loads(json.dumps(value, default=str))


def _rows(
    task: DebateTask, names: Sequence[str], questions: Sequence[Question], replies: Replies
) -> list[dict[str, Any]]:
    common, majority = common_answers(task, replies), majority_replies(task, replies)
    rows = []
    for number, question in enumerate(questions):
        row: dict[str, Any] = {"agents": []}
        right = []
        for agent, name in enumerate(names):
            reply = replies[agent][number]
            made = {"name": name, "answer": task.read_answer(reply), "reply": reply}
            if question.answers:
                made["expected"] = question.answer_of(agent)
                right.append(made["answer"] == made["expected"])
            row["agents"].append(made)
        row["consensus"] = common[number]
        if not has_own_answers(question):
            row["majority"] = task.read_answer(majority[number])
        if right:
            row["accuracy"] = sum(right) / len(right)
        rows.append(row)
    return rows
