"""Questions of a file with a note for each agent, who reads its own note alone.

A row:

    {"notes": ["Anna is in the hall.", "Ben is in the garden."],
     "question": "Where is Ben?", "answers": ["garden"]}

`notes` has one entry for each agent. `question` is asked of all agents; `questions` has one for
each. `answers` has one entry, right for all, or one for each agent. `reply_start` (or
`reply_starts`) begins the reply for the model ("Ben is in the"), which small models need. The
embedded default consists of notes on who is where.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

from jsonargparse.typing import PositiveInt
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.datamodules.commune.answer_extraction import AnswerKind, read_answer
from triptych.datamodules.commune.debate_task import Question, Split
from triptych.datamodules.commune.file_task import FileTask
from triptych.datamodules.sources.records import RecordSource, read_records

_OPTIONAL: dict[str, Any] = {
    "question": str,
    "questions": list[str],
    "answers": list[str],
    "reply_start": str,
    "reply_starts": list[str],
}


class NotedQuestions(FileTask):
    """Questions of a file; each agent reads its own note.

    Args:
        source: Training rows.
        val_source: Held-out rows; null: rows of `source` after the first `num_train`, in an order
            drawn by `seed`.
        num_agents: Number of agents, which is that of notes in each row.
        answer_kind: `named`: the answer is the first of all right answers of the file that a reply
            names. `text`: the reply's first line, without case, punctuation and articles. Or
            `number`, `letter`, `boxed`, as in `Reasoning`.
        num_train: Number of training questions; null: all, with a `val_source`.
        num_val: Number of held-out questions; null: all of `val_source`.
        message: What agents tell each other in a debate by text: their `note`, or their `reply`,
            which seldom holds what others need.
        max_new_tokens: Longest reply.
        instruction: Text after the question.
        data_dir: Base of relative paths; null: the environment's TRIPTYCH_DATA, or ./data.
        seed: Seed of the choice and order of questions.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed (the message names file and line), or there are too few.
    """

    def __init__(
        self,
        source: RecordSource = RecordSource(),  # noqa: B008 (frozen)
        val_source: RecordSource | None = None,
        num_agents: PositiveInt = 2,
        answer_kind: AnswerKind | Literal["named", "text"] = "named",
        num_train: PositiveInt | None = 256,
        num_val: PositiveInt | None = 64,
        message: Literal["note", "reply"] = "note",
        max_new_tokens: PositiveInt = 16,
        instruction: str = "",
        data_dir: str | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(source, val_source, num_train, num_val, seed, data_dir)
        self.num_agents = num_agents
        self.answer_kind = answer_kind
        self.message = message
        self.max_new_tokens = max_new_tokens
        self.instruction = instruction

    # -- questions --------------------------------------------------------------------------------

    def questions(self, split: Split) -> list[Question]:
        """Read the questions of a split."""
        return self._chosen(split)

    def read_questions(self, source: RecordSource) -> list[Question]:
        """Read all rows of a file; a row may lack the right answers.

        Raises:
            FileNotFoundError: if the file is missing.
            ValueError: if a row is malformed.
        """
        return self._read(source, may_be_open=True)

    def ask(self, question: str, notes: Sequence[str], reply_start: str = "") -> Question:
        """Make a question of a text and a note for each agent.

        Raises:
            ValueError: if there are more or fewer notes than agents.
        """
        row = dict.fromkeys(_OPTIONAL) | {"notes": list(notes), "question": question}
        row["reply_start"] = reply_start or None
        if fault := self._fault(row, may_be_open=True):
            raise ValueError(fault)
        return self._question(row)

    def _read(self, source: RecordSource, may_be_open: bool = False) -> list[Question]:
        rows = read_records(
            source,
            required={"notes": list[str]},
            optional=_OPTIONAL,
            embedded=embedded_notes,
            row_check=lambda row: self._fault(row, may_be_open),
        )
        return [self._question(row) for row in rows]

    def _fault(self, row: dict[str, Any], may_be_open: bool) -> str | None:
        count = self.num_agents
        if len(row["notes"]) != count:
            return (
                f"field 'notes' has {len(row['notes'])} notes for {count} agents: give one for "
                "each (task.num_agents)"
            )
        if (row["question"] is None) == (row["questions"] is None):
            return "field 'question' (for all agents) or 'questions' (one for each): give one"
        if row["question"] is not None and not row["question"].strip():
            return "field 'question' is empty"
        for name in ("questions", "reply_starts"):
            if row[name] is not None and len(row[name]) != count:
                return f"field {name!r} has {len(row[name])} entries for {count} agents"
        answers = row["answers"] or []
        if not answers:
            return None if may_be_open else "field 'answers' is missing or empty"
        if len(answers) not in (1, count):
            return (
                f"field 'answers' has {len(answers)} entries: give one that is right for all "
                f"agents, or one for each of the {count}"
            )
        if unread := [text for text in answers if self._normal(text) is None]:
            return f"no {self.answer_kind} is found in answer {unread[0]!r} (task.answer_kind)"
        return None

    def _question(self, row: dict[str, Any]) -> Question:
        evidence = [
            {
                "note": note.strip(),
                "question": (row["question"] or row["questions"][agent]).strip(),
                "start": (row["reply_start"] or (row["reply_starts"] or {agent: ""})[agent]) or "",
            }
            for agent, note in zip(range(len(row["notes"])), row["notes"], strict=True)
        ]
        normal = [self._normal(text) for text in row["answers"] or []]
        return Question([text for text in normal if text is not None], evidence)

    # -- answers ----------------------------------------------------------------------------------

    @cached_property
    def _names(self) -> dict[str, re.Pattern[str]]:
        """The right answers of the training file, each with what finds it in a reply."""
        rows = self._read(self.source)
        rows += [] if self.val_source is None else self._read(self.val_source)
        names = sorted({name for row in rows for name in row.answers}, key=len, reverse=True)
        return {name: re.compile(rf"(?<!\w){re.escape(name)}(?!\w)") for name in names}

    def _normal(self, text: str) -> str | None:
        """Return the normal form of a right answer."""
        if self.answer_kind in ("named", "text"):
            return _plain(text) or None
        kind: Any = self.answer_kind
        return read_answer(text, kind) or read_answer(rf"\boxed{{{text}}}", kind)

    def read_answer(self, reply: str) -> str | None:
        """Read the answer of a reply; a `<think>` block before it is ignored."""
        text = reply.rpartition("</think>")[2].strip()
        if self.answer_kind == "named":
            said = _plain(text.replace("\n", " "))
            found = [(m.start(), n) for n, p in self._names.items() if (m := p.search(said))]
            # Of names that begin at one place the longest counts.
            return min(found, key=lambda at: (at[0], -len(at[1])))[1] if found else None
        if self.answer_kind == "text":
            return _plain(text.partition("\n")[0]) or None
        return read_answer(text, self.answer_kind)

    def reference_replies(self, questions: Sequence[Question], agent: int) -> list[str] | None:
        """Return the right answers; None if a question has none."""
        if not all(question.answers for question in questions):
            return None
        starts = [question.evidence_of(agent)["start"] for question in questions]
        answers = [question.answer_of(agent) for question in questions]
        return [f" {a}" if s else a for s, a in zip(starts, answers, strict=True)]

    # -- prompts ----------------------------------------------------------------------------------

    def encode(
        self,
        tokenizer: PreTrainedTokenizerBase,
        questions: Sequence[Question],
        agent: int,
        messages: Sequence[Sequence[str]] | None = None,
    ) -> list[list[int]]:
        """Encode a user message: the note, the messages of others, the question."""
        conversations, starts = [], []
        for number, question in enumerate(questions):
            own = question.evidence_of(agent)
            told = [own["note"], *(messages[number] if messages is not None else [])]
            parts = [*told, own["question"], self.instruction]
            text = "\n".join(part for part in parts if part)
            conversations.append([{"role": "user", "content": text}])
            starts.append(own["start"])
        assert isinstance(tokenizer, PreTrainedTokenizerFast)
        prompts = encode_prompts(tokenizer, conversations)
        return [
            [*ids, *tokenizer(start, add_special_tokens=False)["input_ids"]] if start else ids
            for ids, start in zip(prompts, starts, strict=True)
        ]

    def messages(
        self,
        questions: Sequence[Question],
        replies: Sequence[Sequence[str]],
        agent: int,
        max_tokens: int | None = None,
    ) -> list[list[str]]:
        """Return the others' notes or replies; `max_tokens` keeps the first words."""
        heard = []
        for number, question in enumerate(questions):
            said = [
                question.evidence_of(other)["note"]
                if self.message == "note"
                else question.evidence_of(other)["start"] + replies[other][number]
                for other in range(self.num_agents or 0)
                if other != agent
            ]
            heard.append([" ".join(text.split()[:max_tokens]) for text in said])
        return heard

    def fingerprint(self, split: Split) -> str:
        """Hash the rows and the settings of the prompt."""
        settings = [
            *(self.num_agents, self.answer_kind, self.num_train, self.num_val),
            *(self.instruction, self.seed, self.message),
        ]
        return self._hash(settings, embedded_notes, split)


def embedded_notes() -> list[dict[str, Any]]:
    """Return notes for two agents on who is where; each is asked what the other knows."""
    people = ("Anna", "Ben", "Carl", "Dora", "Emil", "Fay", "Gus", "Hana")
    places = ("office", "library", "hall", "garden", "school", "church", "bank", "park")
    rows = []
    for first, one in enumerate(people):
        for other in people[first + 1 :]:
            for here in places:
                for there in places:
                    rows.append(
                        {
                            "notes": [f"{one} is in the {here}.", f"{other} is in the {there}."],
                            "questions": [f"Where is {other}?", f"Where is {one}?"],
                            "answers": [there, here],
                            "reply_starts": [f"{other} is in the", f"{one} is in the"],
                        }
                    )
    return rows


def _plain(text: str) -> str:
    """Return a text without case, punctuation, articles and repeated spaces.

    >>> _plain(" The  Garden.")
    'garden'
    """
    words = re.sub(r"[^\w\s]", " ", text.lower()).split()
    return " ".join(word for word in words if word not in ("a", "an", "the"))
