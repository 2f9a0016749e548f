"""Questions in the formats of the LM Evaluation Harness, answered by generation."""

import re
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from jsonargparse.typing import NonNegativeInt, PositiveInt

from triptych.callbacks.remember.probes.base import ProbeSetting
from triptych.callbacks.remember.probes.replies import Question, ReplyProbe, share
from triptych.datamodules.batches.packed_datamodule import locate
from triptych.datamodules.embedded.tables import embedded_facts
from triptych.datamodules.remember.probe_rows import draw_rows, embedded_answers
from triptych.datamodules.sources.records import RecordSource, read_records

TaskName = Literal["nq_open", "triviaqa", "gsm8k"]
_NUMBER_AT_END = re.compile(r"#### (\-?[0-9\.\,]+)")
_NUMBER = re.compile(r"(-?[$0-9.,]{2,})|(-?[0-9]+)")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class TaskFormat:
    """How the harness asks and scores a task.

    Attributes:
        description: Text before everything else.
        prompt: A question, with {question} in its place.
        between: Text between examples.
        until: Texts that end an answer.
        ignored: Patterns that are removed from answers before they are compared.
        source: The rows.
    """

    description: str
    prompt: str
    between: str
    until: tuple[str, ...]
    ignored: tuple[str, ...]
    source: str


FORMATS: dict[TaskName, TaskFormat] = {
    "nq_open": TaskFormat(
        "Answer these questions:\n\n",
        "Q: {question}?\nA:",
        "\n",
        ("\n", ".", ","),
        (r"\b(?:The |the |An |A |The |a |an )",),
        "qa/nq_open_dev_a.jsonl.gz",
    ),
    "triviaqa": TaskFormat(
        "", "Question: {question}?\nAnswer:", "\n\n", ("\n", ".", ","), (), "qa/facts.jsonl.gz"
    ),
    "gsm8k": TaskFormat(
        "",
        "Question: {question}\nAnswer:",
        "\n\n",
        ("Question:", "</s>", "<|im_end|>"),
        (",", r"\$", r"(?s).*#### ", r"\.$"),
        "probes/gsm8k_test.jsonl.gz",
    ),
}


class GenerationTask(ReplyProbe):
    """Lets a model answer in the format of NQ-open, TriviaQA or GSM8K of the LM Evaluation Harness.

    The model continues a plain prompt greedily, without a chat template, as the harness does by
    default. Number: `exact_match`, as the task of this name in the harness 0.4 computes it; for
    `gsm8k` it is `exact_match` of its filter `flexible-extract` (the last number), and
    `strict_exact_match` that of `strict-match` (the number after ####).

    Args:
        task: The format.
        source: Rows with `question` and `answers`, for `gsm8k` with `question` and `answer`; null:
            the file of the task in the data folder; "embedded" for questions on the embedded facts.
        num_fewshot: Examples before each question: the first rows of `fewshot_source`.
        fewshot_source: Rows of examples; required with `num_fewshot`.
        num_rows: Largest number of questions asked, drawn by `seed`; null: all.
        max_new_tokens: Longest answer, in tokens; null: 256 for `gsm8k`, else 32 (the harness has
            256, but ends such answers at the first comma or full stop).
        **kwargs: Arguments of `ReplyProbe`.

    Raises:
        ValueError: if examples are asked for and no rows of examples are given.
    """

    headline = "exact_match"

    def __init__(
        self,
        task: TaskName = "nq_open",
        source: RecordSource | None = None,
        num_fewshot: NonNegativeInt = 0,
        fewshot_source: RecordSource | None = None,
        num_rows: PositiveInt | None = 100,
        max_new_tokens: PositiveInt | None = None,
        **kwargs: Any,
    ) -> None:
        longest = max_new_tokens or (256 if task == "gsm8k" else 32)
        super().__init__(num_rows=num_rows, max_new_tokens=longest, **kwargs)
        if num_fewshot and fewshot_source is None:
            raise ValueError(
                f"the probe has num_fewshot {num_fewshot}, but no fewshot_source: name the rows of "
                "the examples, such as probes/gsm8k_train_2k.jsonl.gz"
            )
        self.task: TaskName = task
        self.source = source
        self.num_fewshot = num_fewshot
        self.fewshot_source = fewshot_source

    @property
    def shown(self) -> tuple[str, ...]:
        """The exact match, for GSM8K by both rules."""
        return ("exact_match", *(["strict_exact_match"] if self.task == "gsm8k" else []))

    def ask(self, setting: ProbeSetting) -> list[Question]:
        """Read the questions, and word them with their examples."""
        form = FORMATS[self.task]
        rows = self._rows(self.source or RecordSource(form.source))
        examples = self._rows(self.fewshot_source) if self.fewshot_source else []
        before = form.description + "".join(
            f"{_asked(form, question)} {answers[0]}{form.between}"
            for question, answers in examples[: self.num_fewshot]
        )
        return [
            Question(before + _asked(form, question), answers, self.task, chat=False)
            for question, answers in draw_rows(rows, self.most_rows(setting), self.seed)
        ]

    def scores(self, replies: Mapping[int, str], first: Mapping[int, str]) -> dict[str, float]:
        """Score replies; see the base class."""
        texts = {index: self._cut(text) for index, text in replies.items()}
        answers = {index: self.questions[index].answers for index in texts}
        if self.task != "gsm8k":
            right = [self._is_right(text.strip(), answers[i]) for i, text in texts.items()]
            return {"exact_match": share(right)}
        values = {}
        for name, found in (("exact_match", _last_number), ("strict_exact_match", _marked_number)):
            right = [self._is_right(found(text), answers[i]) for i, text in texts.items()]
            values[name] = share(right)
        return values

    def visible(self, text: str, question: Question) -> str:
        """Return the whole reply: the task's own marks end it."""
        return text

    def _rows(self, source: RecordSource) -> list[tuple[str, tuple[str, ...]]]:
        name, kind = ("answer", str) if self.task == "gsm8k" else ("answers", list[str])
        fields: dict[str, Any] = {"question": str, name: kind}
        embedded = embedded_answers if self.task == "gsm8k" else embedded_facts
        rows = read_records(locate(source, self.data_dir), fields, embedded=embedded)
        return [
            (row["question"], (row[name],) if self.task == "gsm8k" else tuple(row[name]))
            for row in rows
        ]

    def _cut(self, text: str) -> str:
        for mark in FORMATS[self.task].until:
            text = text.split(mark)[0]
        return text

    def _is_right(self, said: str, answers: Sequence[str]) -> bool:
        return any(self._plain(said) == self._plain(answer) for answer in answers)

    def _plain(self, text: str) -> str:
        for pattern in FORMATS[self.task].ignored:
            text = re.sub(pattern, "", text)
        text = text.lower()
        return text if self.task == "gsm8k" else text.translate(_NO_PUNCTUATION)


def _asked(form: TaskFormat, question: str) -> str:
    return form.prompt.replace("{question}", question)


def _marked_number(text: str) -> str:
    found = _NUMBER_AT_END.search(text)
    return found[1].strip() if found else "[invalid]"


def _last_number(text: str) -> str:
    found = _NUMBER.findall(text)
    return next((part.strip() for part in found[-1] if part), "") if found else "[invalid]"
