"""The place of a prefix in an agent's prompt.

    before_prompt   [prefix] <s> system ... user: question          assistant:
    after_bos       <s> [prefix] system ... user: question          assistant:
    user_text       <s> system ... user: [prefix] question          assistant:
    before_reply    <s> system ... user: question          [prefix] assistant:

A pretrained model attends to its first token as to a sink, so a vector in front of it is hardly
read. Measured with one adapter on SmolLM2-135M-Instruct, same thoughts and seed, in 60 steps: .47
right before the prompt, 1.00 at the start of the user's text (.66 after BOS, 1.00 before the
assistant's turn). Models that are trained here on prompts with prefixes have no such sink.
"""

from collections.abc import Sequence
from typing import Any, Literal, get_args

from transformers import PreTrainedTokenizerBase

Place = Literal["user_text", "before_reply", "after_bos", "before_prompt"]
PLACES: tuple[Place, ...] = get_args(Place)
# Tokens of a turn's head that are compared where the template writes no special token.
_HEAD_TOKENS = 4


def default_place(tokenizer: PreTrainedTokenizerBase | None) -> Place:
    """Return the start of the user's text for a tokenizer with a chat template."""
    has_turns = tokenizer is not None and tokenizer.chat_template is not None
    return "user_text" if has_turns else "before_prompt"


class PlaceFinder:
    """Finds a place in prompts by the tokens that the chat template writes around the last turn.

    Args:
        tokenizer: The tokenizer that encoded the prompts.
        place: The place.

    Raises:
        ValueError: if the place does not exist, or needs a chat template and there is none.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, place: Place) -> None:
        if place not in PLACES:
            raise ValueError(f"adapter.place is {place!r}: choose {', '.join(PLACES)}, or null")
        self.place = place
        if place in ("after_bos", "before_prompt"):
            return
        if tokenizer.chat_template is None:
            raise ValueError(
                f"adapter.place is {place}, but the agent's tokenizer has no chat template that "
                "would tell where a user's text begins: set it to before_prompt or after_bos"
            )
        self._user_head, self._reply_head = turn_heads(tokenizer)

    def index(self, prompt: Sequence[int]) -> int:
        """Return the number of tokens before the prefix.

        Args:
            prompt: Token ids without padding.

        Raises:
            ValueError: if the prompt has no such place.
        """
        if self.place == "before_prompt":
            return 0
        if self.place == "after_bos":
            return 1
        reply = _last(prompt, self._reply_head, len(prompt))
        if self.place == "before_reply" and reply is not None:
            return reply
        user = None if reply is None else _last(prompt, self._user_head, reply)
        if user is None:
            raise ValueError(
                f"a prompt has no place {self.place}: it is not a conversation in the chat "
                "template of the agent's tokenizer. Let the task encode prompts by "
                "`encode_prompts`, or set adapter.place to after_bos or before_prompt"
            )
        return user + len(self._user_head)


def turn_heads(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the tokens right before a user's text, and those between it and the reply.

    Each begins with the special token nearest to the text, if there is one.
    """
    first, second = (_encode(tokenizer, text, True) for text in ("x", "7"))
    start = next(i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    marks = [i for i in range(start) if first[i] in special]
    user_head = first[marks[-1] if marks else max(0, start - _HEAD_TOKENS) : start]
    closed = _encode(tokenizer, "x", False)
    if len(closed) < len(first) and first[: len(closed)] == closed:
        return user_head, first[len(closed) :]
    # A template without a head of the assistant's turn, such as `[INST] x [/INST]`.
    after = first[start + 1 :]
    ends = [i for i, token in enumerate(after) if token in special]
    return user_head, after[ends[-1] if ends else 0 :]


def _encode(tokenizer: Any, text: str, to_be_continued: bool) -> list[int]:
    messages = [{"role": "user", "content": text}]
    backend = tokenizer.backend_tokenizer
    before = tokenizer.split_special_tokens, backend.encode_special_tokens
    tokenizer.split_special_tokens = backend.encode_special_tokens = False
    try:
        encoding = tokenizer.apply_chat_template(messages, add_generation_prompt=to_be_continued)
    finally:
        tokenizer.split_special_tokens, backend.encode_special_tokens = before
    return list(encoding["input_ids"])


def _last(ids: Sequence[int], part: Sequence[int], end: int) -> int | None:
    """Return where a part begins for the last time, with its end at `end` or before."""
    length = len(part)
    starts = range(end - length, -1, -1) if length else ()
    return next((i for i in starts if list(ids[i : i + length]) == list(part)), None)
