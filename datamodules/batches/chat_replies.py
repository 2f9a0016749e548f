r"""Replies in the chat template of a tokenizer, with the tokens that end a turn.

    "Who wrote Emma?", "Jane Austen."
      -> prompt    <|im_start|>user\nWho wrote Emma?<|im_end|>\n<|im_start|>assistant\n
      -> reply     Jane Austen.
      -> turn_end  <|im_end|>

The tokens are those of the template with both messages, as transformers writes them.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.chat_template import (
    PLAIN_TEMPLATE,
    encode_conversation,
    encode_prompts,
)
from triptych.datamodules.batches.cut_tokens import encode_within
from triptych.models.end_tokens import turn_end

Form = Literal["auto", "chat", "plain"]


class Chat(NamedTuple):
    """Token ids of a message with its reply.

    Attributes:
        prompt: Up to where the reply begins.
        reply: The reply.
        turn_end: The token that ends the turn.
    """

    prompt: list[int]
    reply: list[int]
    turn_end: list[int]


def default_template(tokenizer: PreTrainedTokenizerFast) -> str | None:
    """Return the chat template that a tokenizer uses by default; None if it has none."""
    template: Any = tokenizer.chat_template
    return template.get("default") if isinstance(template, dict) else template


def asks_in_chat(
    form: Form, tokenizer: PreTrainedTokenizerFast, plain_templates: Sequence[str] = ()
) -> bool:
    """Return whether a form is chat form for a tokenizer.

    Args:
        form: "auto" is chat form where the tokenizer has a chat template.
        tokenizer: The tokenizer.
        plain_templates: Chat templates that write the plain form, as exports have.

    Raises:
        ValueError: if `form` is "chat" and the tokenizer has no chat template.
    """
    own = default_template(tokenizer)
    if form == "chat" and own is None:
        raise ValueError(
            "form is chat, but the tokenizer has no chat template: set form to plain or auto, or "
            "use the tokenizer of a chat model"
        )
    return form == "chat" or (form == "auto" and own is not None and own not in plain_templates)


def encode_chats(
    tokenizer: PreTrainedTokenizerFast, pairs: Sequence[tuple[str, str]]
) -> list[Chat]:
    """Tokenise messages of a user with their replies.

    Args:
        tokenizer: A tokenizer with a chat template; else the plain template is used.
        pairs: Message and reply of each.

    Raises:
        ValueError: if the template refuses the messages.
    """
    asked = [([{"role": "user", "content": message}], reply) for message, reply in pairs]
    return encode_answered(tokenizer, asked)


def encode_answered(
    tokenizer: PreTrainedTokenizerFast, answered: Sequence[tuple[list[dict[str, str]], str]]
) -> list[Chat]:
    """Tokenise conversations with the reply to each.

    Args:
        tokenizer: A tokenizer with a chat template; else the plain template is used.
        answered: Messages (`role` and `content`; the last is the user's) and reply of each.

    Raises:
        ValueError: if the template refuses the messages.
    """
    prompts = encode_prompts(tokenizer, [messages for messages, _ in answered])
    return [
        _split(tokenizer, prompt, messages, reply)
        for prompt, (messages, reply) in zip(prompts, answered, strict=True)
    ]


def _split(
    tokenizer: PreTrainedTokenizerFast,
    prompt: list[int],
    messages: list[dict[str, str]],
    reply: str,
) -> Chat:
    if default_template(tokenizer) in (None, PLAIN_TEMPLATE):
        return Chat(prompt, encode_within(tokenizer, reply), [tokenizer.eos_token_id])
    whole = encode_conversation(tokenizer, [*messages, {"role": "assistant", "content": reply}])
    special = set(tokenizer.all_special_ids)
    special |= {index for index, token in tokenizer.added_tokens_decoder.items() if token.special}
    after = whole[len(prompt) :] if whole[: len(prompt)] == prompt else []
    ends = [place for place, token in enumerate(after) if token in special]
    if ends and ends[0] > 0:
        return Chat(prompt, after[: ends[0]], [after[ends[0]]])
    # The template writes a past reply in another way than one to come.
    return Chat(prompt, encode_within(tokenizer, reply), [turn_end(tokenizer)])
