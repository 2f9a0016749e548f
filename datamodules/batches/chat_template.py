"""From the messages of a conversation to the tokens a model answers after.

A tokenizer with a chat template words the messages its own way. One without, as those trained here,
uses the plain template:

    [BOS]User: Name a fruit.
    Assistant:
    <the reply begins here, on a line of its own, and ends with EOS>

so that a reply needs no leading space, and what is sampled after the prompt is the reply as it is.
Words of a message that spell special tokens or marks of a template stay words, either way.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.tokenizer import encode_texts

ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


def plain_text(messages: Sequence[Mapping[str, str]]) -> str:
    r"""Word messages by the plain template, up to where the reply begins.

    >>> plain_text([{"role": "user", "content": "Name a fruit."}])
    'User: Name a fruit.\nAssistant:\n'
    """
    turns = (f"{ROLES[message['role']]}: {message['content']}\n" for message in messages)
    return f"{''.join(turns)}{ROLES['assistant']}:\n"


def encode_prompts(
    tokenizer: PreTrainedTokenizerFast, conversations: Sequence[Sequence[Mapping[str, str]]]
) -> list[list[int]]:
    """Tokenise conversations up to where the reply begins.

    Args:
        tokenizer: With BOS, or with a chat template of its own.
        conversations: The messages of each, with `role` (one of `ROLES`) and `content`.

    Returns:
        Token ids of each.

    Raises:
        ValueError: if the tokenizer's template refuses a conversation, such as one with a system
            message.
    """
    if tokenizer.chat_template is None:
        texts = encode_texts(tokenizer, [plain_text(messages) for messages in conversations])
        return [[tokenizer.bos_token_id, *ids] for ids in texts]
    backend = tokenizer.backend_tokenizer
    spelled_out = backend.encode_special_tokens
    try:
        return [_by_own_template(tokenizer, messages) for messages in conversations]
    finally:
        backend.encode_special_tokens = spelled_out


def encode_replies(tokenizer: PreTrainedTokenizerFast, replies: Sequence[str]) -> list[list[int]]:
    """Tokenise replies, each with the EOS that ends it."""
    return [[*ids, tokenizer.eos_token_id] for ids in encode_texts(tokenizer, replies)]


def _by_own_template(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    try:
        # The template's own marks become special tokens, those that a message spells do not.
        encoding: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=True,
            sanitize_control_tokens=True,
            tokenizer_kwargs={"split_special_tokens": False},
        )
    except Exception as error:  # templates raise what they like
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation of {roles} ({error}): set "
            "prompts.history to first_turn, or leave out rows with such messages"
        ) from error
    return list(encoding["input_ids"])
