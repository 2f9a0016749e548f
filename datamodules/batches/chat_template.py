"""Tokens of a conversation, up to where the model's reply begins.

A tokenizer with a chat template uses it. One without, such as those trained here, uses the plain
template:

    [BOS]User: Name a fruit.
    Assistant:
    <the reply begins here, on a new line, and ends with EOS>

A reply then needs no leading space, and the text sampled after the prompt is exactly the reply.
Names of special tokens and template marks inside a message are tokenised as ordinary text.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedTokenizerFast

from triptych.datamodules.batches.tokenizer import document_start, encode_texts
from triptych.models.end_tokens import turn_end

#: The plain template in the language of transformers, for the tokenizers of exports.
PLAIN_TEMPLATE = (
    "{%- set names = {'system': 'System', 'user': 'User', 'assistant': 'Assistant'} -%}"
    "{{- bos_token -}}"
    "{%- for message in messages -%}"
    "{%- if loop.last and message['role'] == 'assistant' and not add_generation_prompt -%}"
    "{{- 'Assistant:\n' + message['content'] + eos_token -}}"
    "{%- else -%}"
    "{{- names[message['role']] + ': ' + message['content'] + '\n' -}}"
    "{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- 'Assistant:\n' -}}{%- endif -%}"
)
ROLES = {"system": "System", "user": "User", "assistant": "Assistant"}


def plain_text(messages: Sequence[Mapping[str, str]]) -> str:
    r"""Write messages in the plain template, up to where the reply begins.

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
        tokenizer: A tokenizer with BOS or with a chat template.
        conversations: The messages of each, with `role` (one of `ROLES`) and `content`.

    Returns:
        Token ids of each conversation.

    Raises:
        ValueError: if the tokenizer's template refuses a conversation, for example one with a
            system message.
    """
    if tokenizer.chat_template is None:
        texts = encode_texts(tokenizer, [plain_text(messages) for messages in conversations])
        start = document_start(tokenizer)
        return [[*start, *ids] for ids in texts]
    with _special_tokens_recognised(tokenizer):
        encoded = [_by_own_template(tokenizer, messages) for messages in conversations]
    if conversations:
        _check_marks(tokenizer, conversations[0], encoded[0])
    return encoded


def encode_conversation(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]]
) -> list[int]:
    """Tokenise a whole conversation, replies included, by the tokenizer's chat template.

    Raises:
        ValueError: if the template refuses the conversation.
    """
    with _special_tokens_recognised(tokenizer):
        return _by_own_template(tokenizer, messages, to_be_continued=False)


def encode_replies(tokenizer: PreTrainedTokenizerFast, replies: Sequence[str]) -> list[list[int]]:
    """Tokenise replies, each with the token that ends a turn of the chat template, or EOS."""
    end = turn_end(tokenizer)
    return [[*ids, end] for ids in encode_texts(tokenizer, replies)]


@contextmanager
def _special_tokens_recognised(tokenizer: PreTrainedTokenizerFast) -> Iterator[None]:
    """Let names of special tokens be these tokens, as `build_tokenizer` forbids for plain text.

    Both switches count: transformers reads its own, and its backend keeps another.
    """
    backend = tokenizer.backend_tokenizer
    before = tokenizer.split_special_tokens, backend.encode_special_tokens
    tokenizer.split_special_tokens = backend.encode_special_tokens = False
    try:
        yield
    finally:
        tokenizer.split_special_tokens, backend.encode_special_tokens = before


def _by_own_template(
    tokenizer: PreTrainedTokenizerFast,
    messages: Sequence[Mapping[str, str]],
    to_be_continued: bool = True,
) -> list[int]:
    try:
        # Marks of the template become special tokens; the same text in a message does not.
        encoding: Any = tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            add_generation_prompt=to_be_continued,
            sanitize_control_tokens=True,
        )
    except Exception as error:  # templates raise errors of any type
        roles = ", ".join(message["role"] for message in messages)
        raise ValueError(
            f"the tokenizer's chat template refuses a conversation of {roles} ({error}): set "
            "prompts.history to first_turn, or leave out rows with such messages"
        ) from error
    return list(encoding["input_ids"])


def _check_marks(
    tokenizer: PreTrainedTokenizerFast, messages: Sequence[Mapping[str, str]], ids: Sequence[int]
) -> None:
    """Check that the special tokens that the template writes are in the prompt.

    Raises:
        RuntimeError: if all were spelled out as letters.
    """
    blank = [dict(message) | {"content": "x"} for message in messages]
    text: Any = tokenizer.apply_chat_template(blank, add_generation_prompt=True, tokenize=False)
    written = [token for token in tokenizer.all_special_tokens if token in text]
    marks = {tokenizer.convert_tokens_to_ids(token) for token in written}
    if marks and not marks & set(ids):
        raise RuntimeError(
            f"the chat template writes {', '.join(written)}, but no such token is in the prompt: "
            "its marks were tokenised as text. Please report this with the name of the tokenizer"
        )
