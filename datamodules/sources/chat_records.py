"""Conversations as data: WildChat's rows or plain prompts, read, checked, filtered and split.

    {"conversation": [{"role": "user", "content": "...", "language": "English", "toxic": false,
     "redacted": false, "turn_identifier": 1}, ...], "language": "English", "toxic": false,
     "redacted": false}                                                      WildChat's schema
    {"prompt": "Name a fruit.", "answers": ["apple", ...], "category": "fruit"}     a plain prompt
    one prompt a line                                                        a .txt file

WildChat (2405.01470) is read by its hub name or from files with the same fields.
"""

import hashlib
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from jsonargparse.typing import PositiveInt

from triptych.datamodules.batches.chat_template import ROLES
from triptych.datamodules.embedded import creative_questions, one_or_two
from triptych.datamodules.sources.record_files import file_format
from triptych.datamodules.sources.records import (
    Adapt,
    EmbeddedRows,
    RecordSource,
    RowCheck,
    describe,
    iterate_records,
)

History = Literal["first_turn", "all_turns"]
Message = dict[str, str]

# The embedded sets by `subset`; the first is the default.
EMBEDDED_PROMPTS: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "creative_questions": creative_questions.prompt_rows,
    "creative_questions_small": partial(creative_questions.prompt_rows, small=True),
    "one_or_two": one_or_two.prompt_rows,
    "one_or_two_few_shot": one_or_two.few_shot_rows,
}
EMBEDDED_REPLIES: dict[str, Callable[[], list[dict[str, Any]]]] = {
    "creative_questions": creative_questions.reply_rows,
    "creative_questions_small": partial(creative_questions.reply_rows, small=True),
    "one_or_two": one_or_two.reply_rows,
}
REQUIRED: dict[str, type] = {}
OPTIONAL: dict[str, Any] = {
    "id": str,
    "conversation_hash": str,
    "conversation": list[dict],  # type: ignore[type-arg]  # a type to check rows against
    "prompt": str,
    "language": str,
    "toxic": bool,
    "redacted": bool,
    "answers": list[str],
    "category": str,
    "split": str,
}
FURTHER_KINDS: dict[str, Any] = {
    "text": str,
    "number": float,
    "texts": list[str],
    "numbers": list[int | float],
}


@dataclass(frozen=True)
class ChatFilter:
    """Filter of conversations; each left-out one is counted under the first reason that applies.

    Args:
        languages: Keep only these, in WildChat's names ("English"); null: all. Rows without a
            language are kept.
        categories: Keep only rows of these categories; null: all, also those without one.
        drop_toxic: Leave out rows that are marked as toxic, as a whole or in a used message.
        drop_redacted: Leave out rows with personal data removed, as a whole or from a used message:
            their texts have gaps.
        min_characters: Leave out shorter prompts.
        max_characters: Leave out longer prompts; null: none.
        drop_duplicates: Of prompts that differ only in case, white space and composition of
            characters, keep the first.

    Raises:
        ValueError: if `max_characters` is below `min_characters`.
    """

    languages: list[str] | None = None
    categories: list[str] | None = None
    drop_toxic: bool = True
    drop_redacted: bool = True
    min_characters: PositiveInt = 1
    max_characters: PositiveInt | None = None
    drop_duplicates: bool = True

    def __post_init__(self) -> None:
        if self.max_characters is not None and self.max_characters < self.min_characters:
            raise ValueError(
                f"max_characters is {self.max_characters}, below min_characters "
                f"({self.min_characters}): raise it"
            )

    def select(self, rows: Iterator[dict[str, Any]]) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """Return the kept rows, and the numbers of rows read, kept, and left out by reason."""
        counts = {"read": 0}
        kept, seen = [], set()
        for row in rows:
            counts["read"] += 1
            reason = self._reason(row)
            key = text_key(row)
            if reason is None and self.drop_duplicates and key in seen:
                reason = "duplicate"
            if reason is not None:
                counts[reason] = counts.get(reason, 0) + 1
                continue
            seen.add(key)
            kept.append(row)
        return kept, counts | {"kept": len(kept)}

    def _reason(self, row: dict[str, Any]) -> str | None:
        language = row["language"]
        if self.languages is not None and language is not None and language not in self.languages:
            return "other language"
        if self.categories is not None and row["category"] not in self.categories:
            return "other category"
        if self.drop_toxic and row["toxic"]:
            return "toxic"
        if self.drop_redacted and row["redacted"]:
            return "redacted"
        length = len(row["prompt"].strip())
        if length < self.min_characters:
            return "too few characters"
        if self.max_characters is not None and length > self.max_characters:
            return "too many characters"
        return None


def read_conversations(
    source: RecordSource,
    history: History,
    embedded: dict[str, Callable[[], list[dict[str, Any]]]],
    further: dict[str, Any] | None = None,
    adapt: Adapt | None = None,
    row_check: RowCheck | None = None,
) -> Iterator[dict[str, Any]]:
    """Yield conversations up to a message of the user.

    Args:
        source: The source.
        history: `first_turn`: up to the user's first message, with a system message before it;
            `all_turns`: up to the user's last message.
        embedded: The embedded sets by `source.subset`.
        further: Further optional fields to keep, with their types.
        adapt: Brings rows of other formats to these fields.
        row_check: Finds faults of a row in `further`.

    Yields:
        Rows with `id`, `prompt` (the user's message), `messages` (role and content; the last one is
        the user's), `reply` (the assistant's answer to it, or None), `toxic`, `redacted`, the other
        fields of `OPTIONAL` that are not specific to WildChat, and `further`. A missing field is
        None.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: if a row is malformed: file, line and field are named.
    """
    optional = OPTIONAL | (further or {})
    by_line = _is_text(source)
    if by_line:
        optional = optional | {"text": str}
    embedded_rows = embedded_set(source, embedded)

    def fault(row: dict[str, Any]) -> str | None:
        return _fault(row, by_line) or (None if row_check is None else row_check(row))

    rows = iterate_records(source, REQUIRED, optional, embedded_rows, fault, adapt)
    number = 0
    for row in rows:
        for part in _lines(row) if by_line else [row]:
            number += 1
            yield _conversation(part, number, history)


def embedded_set(
    source: RecordSource, embedded: dict[str, Callable[[], list[dict[str, Any]]]]
) -> EmbeddedRows:
    """Return the function that makes the rows of the source's embedded set.

    Raises:
        ValueError: if there is no such set.
    """
    name = source.subset or next(iter(embedded))
    if source.is_embedded and name not in embedded:
        raise ValueError(
            f"subset is {source.subset!r}, but the embedded prompts are {', '.join(embedded)}: "
            "name one of these"
        )
    return embedded.get(name, next(iter(embedded.values())))


def text_key(row: dict[str, Any]) -> str:
    r"""Normalise a conversation, to find duplicates: case, white space, composed characters.

    >>> text_key({"messages": [{"role": "user", "content": " Name  a\nFRUIT"}]})
    'user: name a fruit'
    """
    text = "\n".join(f"{message['role']}: {message['content']}" for message in row["messages"])
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def is_held_out(row: dict[str, Any], share: float) -> bool:
    """Return whether a conversation is held out, by a hash of its text: the same in every run."""
    digest = hashlib.sha256(text_key(row).encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def _fault(row: dict[str, Any], by_line: bool) -> str | None:
    """Return the fault of a row with correct types, or None."""
    if by_line and row["text"] is not None:
        return None
    if row["conversation"] is None:
        if row["prompt"] is None:
            return "field 'conversation' or 'prompt' is missing (`columns` renames fields)"
        return None if row["prompt"].strip() else "field 'prompt' is empty"
    for number, turn in enumerate(row["conversation"]):
        for name in ("role", "content"):
            if not isinstance(turn.get(name), str):
                kind = type(turn.get(name)).__name__
                return f"field 'conversation[{number}].{name}' must be str, got {kind}"
        if turn["role"] not in ROLES:
            return (
                f"field 'conversation[{number}].role' is {turn['role']!r}: none of "
                f"{', '.join(ROLES)}"
            )
    if not any(turn["role"] == "user" for turn in row["conversation"]):
        return "field 'conversation' has no message of the user"
    return None


def _is_text(source: RecordSource) -> bool:
    if source.is_embedded or source.hub_name:
        return False
    formats = {file_format(file) for file in source.files()}
    if ".txt" in formats and formats != {".txt"}:
        raise ValueError(
            f"{describe(source)} mixes .txt with other formats: give prompts as lines of .txt "
            "files alone, or as rows of the others"
        )
    return formats == {".txt"}


def _lines(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for line in row["text"].splitlines():
        if line.strip():
            yield row | {"prompt": line.strip()}


def _conversation(row: dict[str, Any], number: int, history: History) -> dict[str, Any]:
    turns = row["conversation"] or [{"role": "user", "content": row["prompt"]}]
    of_user = [place for place, turn in enumerate(turns) if turn["role"] == "user"]
    last = of_user[0] if history == "first_turn" else of_user[-1]
    asked, after = turns[: last + 1], turns[last + 1 : last + 2]
    kept = {
        name: value
        for name, value in row.items()
        if name not in ("conversation", "conversation_hash", "text")
    }
    return kept | {
        "id": row["id"] or row["conversation_hash"] or f"row {number}",
        "prompt": turns[last]["content"],
        "messages": [{"role": turn["role"], "content": turn["content"]} for turn in asked],
        "reply": after[0]["content"] if after and after[0]["role"] == "assistant" else None,
        "toxic": bool(row["toxic"]) or any(turn.get("toxic") for turn in asked),
        "redacted": bool(row["redacted"]) or any(turn.get("redacted") for turn in asked),
    }
