"""Passwords and tokens are taken out of everything that is written or printed."""

import os
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "***"

_WORDS = r"(password|passwd|pwd|passphrase|secret|credentials?|authorization|bearer)"
_KEYS = (
    r"((api|auth|access|private|secret|hf|hub|wandb|github|gitlab|openai)[_-]?(key|token)|token)"
)
# Whole names, or the end of one: `eos_token` and `max_new_tokens` are no secrets.
_NAME = re.compile(rf"(?:.*[_\-.])?{_WORDS}|(?:.*[_\-.])?(?:secret_access_key|{_KEYS[1:-1]})", re.I)
_MODEL_TOKENS = re.compile(
    r"(?:.*[_\-.])?(bos|eos|pad|unk|mask|cls|sep|end|start|stop|special|image|first|last|next|per)"
    r"[_\-]token",
    re.I,
)
_USER_AND_PASSWORD = re.compile(r"([A-Za-z][\w+.\-]*://[^/@\s:]*):[^/@\s]+@")
_TOKEN_AS_USER = re.compile(r"(https?://)[^/@\s:]+@")
_IN_QUERY = re.compile(
    rf"([?&;](?:[\w\-]*[_\-])?(?:{_WORDS}|{_KEYS}|signature|sig)=)[^&;\s\"']+", re.I
)
_KNOWN = re.compile(
    r"\b(hf_[A-Za-z0-9]{16,}|sk-[\w\-]{16,}|gh[pousr]_[A-Za-z0-9]{16,}|github_pat_\w{16,}"
    r"|glpat-[\w\-]{16,}|AKIA[0-9A-Z]{16}|xox[abprs]-[\w\-]{10,}"
    r"|eyJ[\w\-]{8,}\.[\w\-]{8,}\.[\w\-]*)"
)
_BEARER = re.compile(r"\b(Bearer|Basic)\s+[\w\-.~+/=]{8,}", re.I)
_SHORTEST = 8  # of a variable's value: shorter ones occur in other words


def is_secret_name(name: str) -> bool:
    """Tell whether a setting or variable of this name holds a secret.

    >>> [is_secret_name(name) for name in ("api_key", "DB_PASSWORD", "eos_token", "max_tokens")]
    [True, True, False, False]
    """
    return bool(_NAME.fullmatch(name)) and not _MODEL_TOKENS.fullmatch(name)


def without_secrets(text: str) -> str:
    """Hide passwords in addresses, known kinds of tokens, and secrets of the environment.

    >>> without_secrets("postgresql://me:pass@host/db and http://host:5000/a@b")
    'postgresql://me:***@host/db and http://host:5000/a@b'
    """
    text = _USER_AND_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _TOKEN_AS_USER.sub(rf"\1{HIDDEN}@", text)
    text = _IN_QUERY.sub(rf"\1{HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", _KNOWN.sub(HIDDEN, text))
    for value in _of_environment():
        text = text.replace(value, HIDDEN)
    return text


def settings_without_secrets(value: Any) -> Any:
    """Hide secrets in settings at every depth: by the names of keys, and in all texts."""
    if isinstance(value, Mapping):
        return {
            key: HIDDEN
            if isinstance(key, str) and is_secret_name(key) and isinstance(child, str) and child
            else settings_without_secrets(child)
            for key, child in value.items()
        }
    if isinstance(value, list | tuple):
        return [settings_without_secrets(child) for child in value]
    return without_secrets(value) if isinstance(value, str) else value


def words_without_secrets(words: list[str]) -> list[str]:
    """Hide secrets in the words of a command line.

    >>> words_without_secrets(["fit", "--x.api_key", "abc", "--x.password=abc", "--lr", "1"])
    ['fit', '--x.api_key', '***', '--x.password=***', '--lr', '1']
    """
    shown, hides = list[str](), False
    for word in words:
        name, equals, _ = word.partition("=")
        is_option = word.startswith("--") and is_secret_name(name.lstrip("-"))
        if hides and not word.startswith("--"):
            shown.append(HIDDEN)
        elif is_option and equals:
            shown.append(f"{name}={HIDDEN}")
        else:
            shown.append(without_secrets(word))
        hides = is_option and not equals
    return shown


def _of_environment() -> list[str]:
    """Values of the environment that are secrets by name, the longest first."""
    values = {
        value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST and is_secret_name(name) and not os.path.exists(value)
    }
    return sorted(values, key=len, reverse=True)
