"""Questions with a worked answer, the same for every agent: GSM8K, SVAMP, AQuA, MATH and others.

Rows have `question`, `options` for a multiple choice, and the right answer in one of three fields:
`answer` (the answer alone, a number or a text that ends with it as a number, a letter or a box),
`number`, or `solution`. The source's `columns` renames fields: {answer: final_answer} for GSM8K,
{number: answer} for SVAMP, {answer: correct} for AQuA, {question: problem} for MATH. The embedded
default consists of sums in words.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jsonargparse.typing import PositiveInt
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.datamodules.commune.answer_extraction import AnswerKind, read_answer
from triptych.datamodules.commune.debate_task import Question, Split
from triptych.datamodules.commune.file_task import FileTask
from triptych.datamodules.sources.record_files import Row
from triptych.datamodules.sources.records import RecordSource, describe, read_records

INSTRUCTIONS: dict[AnswerKind, str] = {
    "number": "Think step by step, and end with the number after ####.",
    "letter": "Think step by step, and end with: The answer is (letter).",
    "boxed": r"Think step by step, and put the final answer within \boxed{}.",
}

# Fields that state the right answer.
_ANSWERS = {"answer": str, "solution": str, "number": float}
_OPTIONAL: dict[str, Any] = {**_ANSWERS, "options": list[str]}


class Reasoning(FileTask):
    """Questions from any source, put to agents in a chat prompt.

    Args:
        source: Training rows.
        val_source: Held-out rows; null: rows of `source` after the first `num_train`, in an order
            drawn by `seed`.
        answer_kind: `number`, `letter` or `boxed`.
        level: Use only rows with this `level`, 3 or "Level 3" in copies of MATH; null: all rows.
        num_train: Number of training questions; null: all.
        num_val: Number of held-out questions; null: all of `val_source`, which must then be given.
        max_new_tokens: Longest reply.
        instruction: Text after the question; null: the default for `answer_kind`.
        data_dir: Base of relative paths; null: the environment's TRIPTYCH_DATA, or ./data.
        seed: Seed of the choice and order of questions.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed, or there are too few.
    """

    def __init__(
        self,
        source: RecordSource = RecordSource(),  # noqa: B008 (frozen)
        val_source: RecordSource | None = None,
        answer_kind: AnswerKind = "number",
        level: int | str | None = None,
        num_train: PositiveInt | None = 512,
        num_val: PositiveInt | None = 128,
        max_new_tokens: PositiveInt = 256,
        instruction: str | None = None,
        data_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source, val_source, num_train, num_val, seed, data_dir)
        self.answer_kind: AnswerKind = answer_kind
        self.level = level
        self.max_new_tokens = max_new_tokens
        self.instruction = INSTRUCTIONS[answer_kind] if instruction is None else instruction
        self._num_options: int | None = None

    def questions(self, split: Split) -> list[Question]:
        """Read the questions of a split; text and answer are the same for every agent."""
        return [Question([row["right"]], [_worded(row)]) for row in self._chosen(split)]

    def read_questions(self, source: RecordSource) -> list[Question]:
        """Read all rows of a file, of any level; a row may lack the right answer.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if a row has no question, or an answer of another kind.
        """
        rows = read_records(
            source,
            required={"question": str},
            optional=_OPTIONAL,
            row_check=lambda row: self._find_fault(row, may_be_open=True),
            adapt=_numbers_as_text,
        )
        self._count_options(rows)
        return [
            Question([] if (right := self._right(row)) is None else [right], [_worded(row)])
            for row in rows
        ]

    def ask(self, question: str, notes: Sequence[str]) -> Question:
        """Make a question of a text; all agents read the same.

        Raises:
            ValueError: if there are notes.
        """
        if notes:
            raise ValueError(
                "Reasoning puts one question to all agents: leave the notes out, or train agents "
                "on triptych.datamodules.commune.noted_questions.NotedQuestions"
            )
        return Question([], [question])

    def _read(self, source: RecordSource) -> list[dict[str, Any]]:
        level: dict[str, type] = {} if self.level is None else {"level": type(self.level)}
        rows = read_records(
            source,
            required={"question": str},
            optional={**_OPTIONAL, **level},
            embedded=embedded_sums,
            row_check=self._find_fault,
            adapt=_numbers_as_text,
        )
        self._count_options(rows)
        kept = [row for row in rows if self.level is None or row["level"] == self.level]
        if not kept:
            raise ValueError(
                f"no row of {describe(source)} has the level {self.level!r}: set task.level to one "
                "that occurs, or to null"
            )
        return [{**row, "right": self._right(row)} for row in kept]

    def _count_options(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Remember how many options a question has at most: later letters are no answers."""
        most = max((len(row["options"] or []) for row in rows), default=0)
        if most:
            self._num_options = max(most, self._num_options or 0)

    def _right(self, row: dict[str, Any]) -> str | None:
        if row["number"] is not None:
            return read_answer(repr(row["number"]), self.answer_kind)
        text = row["answer"] or row["solution"] or ""
        found = read_answer(text, self.answer_kind)
        if found is None and self.answer_kind == "boxed" and row["answer"]:
            return read_answer(rf"\boxed{{{text}}}", "boxed")  # the answer alone
        return found

    def _find_fault(self, row: dict[str, Any], may_be_open: bool = False) -> str | None:
        if not row["question"].strip():
            return "field 'question' is empty"
        if may_be_open and all(row[name] in (None, "") for name in _ANSWERS):
            return None
        if self._right(row) is None:
            return (
                f"no {self.answer_kind} is found in 'answer', 'number' or 'solution' "
                "(task.answer_kind sets the kind, `columns` renames fields)"
            )
        return None

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Encode a user message: the question, the messages of others, and the instruction."""
        conversations = []
        for number, question in enumerate(questions):
            text = question.evidence_of(agent)
            if messages is not None and messages[number]:
                said = "\n\n".join(f"Another agent: {told}" for told in messages[number])
                text += f"\n\nThese are the solutions of other agents:\n\n{said}"
            conversations.append([{"role": "user", "content": f"{text}\n\n{self.instruction}"}])
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        return encode_prompts(tokenizer, conversations)

    def read_answer(self, reply: str) -> str | None:
        """Read the final answer of a reply; a `<think>` block before it is ignored."""
        answered = reply.rpartition("</think>")[2]
        return read_answer(answered, self.answer_kind, self._num_options)

    def messages(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        agent: int,
        max_tokens: int | None = None,
    ) -> list[list[str]]:
        """Return the others' replies; `max_tokens` keeps the last words, which hold the answer."""
        texts = []
        for number in range(len(questions)):
            said = [of[number] for other, of in enumerate(replies) if other != agent]
            if max_tokens is not None:
                said = [" ".join(text.split()[-max_tokens:]) for text in said]
            texts.append(said)
        return texts

    def fingerprint(self, split: Split) -> str:
        """Hash the rows and the settings of the prompt."""
        settings = [
            *(self.answer_kind, self.level, self.num_train, self.num_val),
            *(self.instruction, self.seed),
        ]
        return self._hash(settings, embedded_sums, split)


def _numbers_as_text(row: Row, columns: Mapping[str, str]) -> dict[str, Any]:
    """Write an answer that is a number, as in SVAMP, as text."""
    name = columns.get("answer", "answer")
    value = row.values.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return row.values
    return {**row.values, name: repr(value)}


def embedded_sums() -> list[dict[str, Any]]:
    """Return sums in words, one for each pair of numbers from 2 to 31."""
    names = ("Ada", "Ben", "Cleo", "Dan", "Eva")
    things = ("marbles", "stamps", "pears", "books")
    rows = []
    for first in range(2, 32):
        for second in range(2, 32):
            who, what = names[(first + second) % 5], things[first * second % 4]
            question = (
                f"{who} has {first} {what} and is given {second} more. "
                f"How many {what} does {who} have?"
            )
            rows.append(
                {
                    "question": question,
                    "answer": f"{first} + {second} = {first + second} #### {first + second}",
                }
            )
    return rows


def _worded(row: dict[str, Any]) -> str:
    question: str = row["question"].strip()
    options = row["options"] or []
    if not options:
        return question
    letters = "ABCDEFGHIJ"
    lines = [
        text if text[:2] == f"{letter})" else f"{letter}) {text}"
        for letter, text in zip(letters, options, strict=False)
    ]
    return "\n".join([question, *lines])
