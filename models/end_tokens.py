"""The tokens that end a reply: all that tokenizer, config, generation config and template name."""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

_REPLY = "Zyxwvut"
_CHAT = [{"role": "user", "content": "x"}, {"role": "assistant", "content": _REPLY}]


def end_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that end a reply of a model, the tokenizer's own end token first.

    Chat models often end a turn with another token than the text: Gemma names two in its
    `generation_config.json`, Phi-3.5 three. Tokens that are ordinary text in this tokenizer are
    left out: they belong to another one.

    Args:
        model: The model, with its config and its generation config.
        tokenizer: Its tokenizer.
    """
    added = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    named: list[int] = []
    for source in (tokenizer, model.config, model.generation_config):
        ids: Any = getattr(source, "eos_token_id", None)
        named += ids if isinstance(ids, list | tuple) else [] if ids is None else [ids]
    named.append(turn_end(tokenizer))
    own = tokenizer.eos_token_id
    return [i for i in dict.fromkeys(named) if i is not None and (i in added or i == own)]


def turn_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the special token that the chat template writes after a reply; EOS if it has none."""
    eos: Any = tokenizer.eos_token_id
    end: int = eos
    if tokenizer.chat_template is None:
        return end
    try:
        text: Any = tokenizer.apply_chat_template(_CHAT, tokenize=False)
    except Exception:  # a template may refuse any conversation; it then names no end
        return end
    _, found, after = text.rpartition(_REPLY)
    added = {token.content: i for i, token in tokenizer.added_tokens_decoder.items()}
    places = {after.index(token): i for token, i in added.items() if token and token in after}
    return places[min(places)] if found and places else end


def use_special_tokens(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Set a tokenizer's special tokens in the model's configs, for exports that can generate.

    End tokens that the model brought are kept (`end_tokens`).

    Returns:
        The ids that end a reply.
    """
    ends = end_tokens(model, tokenizer)
    for config in (model.config, model.generation_config):
        if config is not None:
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = ends if len(ends) > 1 else tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
    return ends
