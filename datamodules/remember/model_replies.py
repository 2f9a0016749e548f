"""A model's own greedy replies to messages, cached on disk."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from triptych.datamodules.batches.chat_template import encode_prompts
from triptych.datamodules.batches.length_batches import left_padded
from triptych.datamodules.batches.tokenizer import TokenizerConfig, build_tokenizer
from triptych.models.disk_cache import build_once
from triptych.models.end_tokens import end_tokens
from triptych.models.generation import generate_plainly
from triptych.models.long_loop import with_progress
from triptych.models.pretrained_source import pretrained_source
from triptych.models.remember.memory_lm import load_memory_lm

PROMPTS_AT_ONCE = 16
Messages = Sequence[dict[str, str]]


class Reply(NamedTuple):
    """A reply.

    Attributes:
        text: The reply.
        is_complete: Whether the model ended it, before the longest reply was reached.
    """

    text: str
    is_complete: bool


def model_replies(
    model: str, conversations: Sequence[Messages], max_new_tokens: int, cache_dir: Path
) -> list[Reply]:
    """Return a model's greedy replies in its own chat template; they are made once.

    Args:
        model: Folder, hub name, GGUF file or packaged model. A folder is known by its contents.
        conversations: Messages up to the one to reply to.
        max_new_tokens: Longest reply, in tokens.
        cache_dir: Folder of cached replies.

    Raises:
        ValueError: if the model cannot be loaded.
    """
    source = pretrained_source(model)
    key = json.dumps([model_fingerprint(source), max_new_tokens, *map(list, conversations)])
    digest = hashlib.sha256(key.encode()).hexdigest()[:16]

    def build(folder: Path) -> None:
        made = _replies(source, conversations, max_new_tokens)
        written = json.dumps(made, ensure_ascii=False, indent=1)
        (folder / "replies.json").write_text(written, encoding="utf-8")

    folder = build_once(cache_dir / "replies" / digest, build)
    kept = (folder / "replies.json").read_text(encoding="utf-8")
    return [Reply(*reply) for reply in json.loads(kept)]


def model_fingerprint(source: str) -> str:
    """Hash the files of a model's folder; of a hub name, the name."""
    digest = hashlib.sha256(b"" if Path(source).is_dir() else source.encode())
    if Path(source).is_dir():
        for file in sorted(path for path in Path(source).iterdir() if path.is_file()):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()


def _loaded(source: str) -> PreTrainedModel:
    try:
        if Path(source).is_dir():
            return load_memory_lm(source)
        model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
            source, dtype="auto", trust_remote_code=False
        )
    except Exception as error:  # the loaders raise errors of many types
        raise ValueError(
            f"no model in {source!r} can reply to the chats' prompts ({error}): set chats.model to "
            "a model, or chats.source to conversations with replies"
        ) from error
    return model


def _replies(source: str, conversations: Sequence[Messages], max_new_tokens: int) -> list[Reply]:
    tokenizer = build_tokenizer(TokenizerConfig(path=source), lambda: [], "", Path())
    prompts = encode_prompts(tokenizer, conversations)
    model = _loaded(source).eval()
    nn.Module.to(model, "cuda" if torch.cuda.is_available() else "cpu")
    ends = end_tokens(model, tokenizer)
    pad_id: Any = tokenizer.pad_token_id
    # Prompts of about one length need little padding.
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    batches = [order[i : i + PROMPTS_AT_ONCE] for i in range(0, len(order), PROMPTS_AT_ONCE)]
    replies: dict[int, Reply] = {}
    for batch in with_progress(batches, "batches of replies to everyday prompts", len(batches)):
        ids, mask = left_padded([prompts[index] for index in batch], pad_id)
        with torch.inference_mode():
            made = generate_plainly(
                model,
                ends=ends,
                pad_id=pad_id,
                max_new_tokens=max_new_tokens,
                input_ids=ids.to(model.device),
                attention_mask=mask.to(model.device),
            )[:, ids.shape[1] :]
        for index, row in zip(batch, made.tolist(), strict=True):
            text = str(tokenizer.decode(row, skip_special_tokens=True)).strip()
            replies[index] = Reply(text, any(token in ends for token in row))
    return [replies[index] for index in range(len(prompts))]
