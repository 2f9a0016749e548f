"""How an exported model is asked: the tokenizer's chat template, its limits, the end of replies."""

import copy
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

#: Name of the data's form beside the tokenizer's own chat template.
TRAINING_TEMPLATE = "training"


def exported_tokenizer(
    tokenizer: PreTrainedTokenizerBase, chat_template: str | None, max_length: int | None
) -> PreTrainedTokenizerBase:
    """Copy a run's tokenizer for its export.

    A tokenizer with a chat template keeps it as the default, and gets the data's form under the
    name "training". In a run, names of special tokens in texts are ordinary text. The copy reads
    them as special tokens, since a chat template writes them by name.

    Args:
        tokenizer: The run's tokenizer; it is not changed.
        chat_template: The form in which the data ask; None: they ask nothing.
        max_length: Positions of the model; None: unbounded.
    """
    copied: Any = copy.deepcopy(tokenizer)
    copied.split_special_tokens = False
    copied.init_kwargs.pop("split_special_tokens", None)
    if hasattr(copied, "backend_tokenizer"):
        copied.backend_tokenizer.encode_special_tokens = False
    if max_length is not None:
        copied.model_max_length = min(max_length, copied.model_max_length)
    copied.chat_template = with_training_form(copied.chat_template, chat_template)
    made: PreTrainedTokenizerBase = copied
    return made


def with_training_form(
    own: str | dict[str, str] | None, taught: str | None
) -> str | dict[str, str] | None:
    """Join a tokenizer's own chat templates and the form in which the data ask.

    >>> with_training_form(None, "Q: "), with_training_form("Q: ", "Q: ")
    ('Q: ', 'Q: ')
    >>> with_training_form("<|user|>", "Q: ")
    {'default': '<|user|>', 'training': 'Q: '}
    """
    templates = {"default": own} if isinstance(own, str) else dict(own or {})
    if taught is not None and taught != templates.get("default"):
        templates[TRAINING_TEMPLATE if "default" in templates else "default"] = taught
    return templates.get("default") if templates.keys() <= {"default"} else templates


def write_reply_limits(
    folder: Path, tokenizer: PreTrainedTokenizerBase, max_new_tokens: int | None
) -> None:
    """Write into an exported folder where replies end, and how long they may be.

    End tokens that the model's own settings name are kept: chat models often have several.

    Args:
        folder: The folder, with the model's `generation_config.json` if it has one.
        tokenizer: The exported tokenizer.
        max_new_tokens: Tokens of the longest reply; None: transformers' default.
    """
    has_own = (folder / "generation_config.json").is_file()
    settings: Any = GenerationConfig.from_pretrained(folder) if has_own else GenerationConfig()
    if settings.eos_token_id is None:
        settings.eos_token_id = tokenizer.eos_token_id
    if settings.bos_token_id is None:
        settings.bos_token_id = tokenizer.bos_token_id
    if settings.pad_token_id is None:
        settings.pad_token_id = tokenizer.pad_token_id
    if max_new_tokens is not None:
        settings.max_new_tokens = max_new_tokens
    settings._from_model_config = False  # transformers would derive it anew, without the limit
    settings.save_pretrained(folder)


def num_positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions of a model; None if it has no limit."""
    positions: int | None = getattr(config, "max_position_embeddings", None)
    return positions
