"""Texts in other words, written by a language model: once, and kept on disk.

Any causal or sequence-to-sequence model of `transformers` will do. What it writes is taken as it
is; whether it kept to the facts is for the caller to check as far as that can be checked. A model
that was not trained to follow instructions seldom writes anything of use.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from triptych.datamodules.sources.disk_cache import build_once

# For each text, the texts that say the same.
Rewriter = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True)
class RewriterConfig:
    """Which model rewrites texts, and how.

    Args:
        name: A model on the hub, or a folder written by `save_pretrained`.
        revision: Commit on the hub. Without it the newest is loaded, and what an earlier one wrote
            is still taken from the disk.
        instruction: What the model is told; `{text}` is what it is to rewrite. A tokenizer with a
            chat template gets it as a user's message.
        num_rewrites: How often each text is rewritten.
        max_new_tokens: Longest rewriting, in tokens of the model.
        temperature: Of sampling, above 0.
        top_p: Sample from the likeliest tokens that make up this share, in (0, 1].
        batch_size: Texts rewritten at once.
        seed: Of sampling.
    """

    name: str
    revision: str | None = None
    instruction: str = (
        "Say the following in other words. Keep every name as it is written.\n\n{text}\n\n"
        "In other words:"
    )
    num_rewrites: int = 8
    max_new_tokens: int = 96
    temperature: float = 0.9
    top_p: float = 0.95
    batch_size: int = 8
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value, is_good, wanted in [
            ("instruction", self.instruction, self.instruction.count("{text}") == 1, "hold {text}"),
            ("num_rewrites", self.num_rewrites, self.num_rewrites >= 1, "be at least 1"),
            ("max_new_tokens", self.max_new_tokens, self.max_new_tokens >= 1, "be at least 1"),
            ("temperature", self.temperature, self.temperature > 0, "be above 0"),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "be above 0 and at most 1"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "be at least 1"),
        ]:
            if not is_good:
                raise ValueError(f"model.{name} is {value!r}: it has to {wanted}")


class ModelRewriter:
    """Rewrites texts with a model, by sampling; the same on every call.

    Args:
        config: Which model, and how.

    Raises:
        ValueError: if the model cannot be loaded.
    """

    def __init__(self, config: RewriterConfig) -> None:
        self._config = config
        source = {"pretrained_model_name_or_path": config.name, "revision": config.revision}
        try:
            is_seq2seq = AutoConfig.from_pretrained(**source).is_encoder_decoder
            kind = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
            self._tokenizer = AutoTokenizer.from_pretrained(**source, padding_side="left")
            self._model = kind.from_pretrained(**source, dtype="auto")
        except Exception as error:  # the loader's own errors are of many kinds
            raise ValueError(
                f"cannot load a model that rewrites from {config.name!r} ({error}): give the name "
                "of a causal or sequence-to-sequence model on the hub, or a folder written by "
                "save_pretrained with its tokenizer"
            ) from error
        self._answers_alone = is_seq2seq  # a causal model's output begins with its prompt
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Return `num_rewrites` texts for each."""
        rewrites: list[list[str]] = []
        devices = [self._model.device] if self._model.device.type == "cuda" else []
        with torch.no_grad(), torch.random.fork_rng(devices):
            torch.manual_seed(self._config.seed)
            for start in range(0, len(texts), self._config.batch_size):
                rewrites += self._rewrite(texts[start : start + self._config.batch_size])
        return rewrites

    def _rewrite(self, texts: Sequence[str]) -> list[list[str]]:
        config = self._config
        prompts = self._tokenizer(
            [self._prompt(text) for text in texts],
            return_tensors="pt",
            padding=True,
            # A chat template writes the special tokens itself.
            add_special_tokens=self._tokenizer.chat_template is None,
            return_token_type_ids=False,
        ).to(self._model.device)
        ids = self._model.generate(
            **prompts,
            do_sample=True,
            temperature=config.temperature,
            top_p=config.top_p,
            num_return_sequences=config.num_rewrites,
            max_new_tokens=config.max_new_tokens,
            pad_token_id=self._tokenizer.pad_token_id,
        )
        start = 0 if self._answers_alone else prompts["input_ids"].shape[1]
        written = self._tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
        count = config.num_rewrites
        return [written[place : place + count] for place in range(0, len(written), count)]

    def _prompt(self, text: str) -> str:
        instruction = self._config.instruction.replace("{text}", text)
        if self._tokenizer.chat_template is None:
            return instruction
        message = {"role": "user", "content": instruction}
        prompt: str = self._tokenizer.apply_chat_template(
            [message], tokenize=False, add_generation_prompt=True
        )
        return prompt


def rewritten(
    texts: Sequence[str],
    config: RewriterConfig,
    cache_dir: Path,
    make_rewriter: Callable[[RewriterConfig], Rewriter] = ModelRewriter,
) -> list[list[str]]:
    """Rewrite texts, or read what was written the last time.

    Args:
        texts: What is rewritten.
        config: Which model, and how. A model in a folder counts by the content of its files.
        cache_dir: Where rewritings are kept.
        make_rewriter: Loads the model; called only if the texts were not rewritten before.

    Returns:
        For each text, what the model wrote, without white space around it.
    """
    key = hashlib.sha256(json.dumps([rewriter_fingerprint(config), *texts]).encode()).hexdigest()

    def build(folder: Path) -> None:
        rewrites = make_rewriter(config)(texts)
        with (folder / "rewrites.jsonl").open("w", encoding="utf-8") as file:
            for text, ways in zip(texts, rewrites, strict=True):
                row: dict[str, Any] = {"text": text, "rewrites": [way.strip() for way in ways]}
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    folder = build_once(cache_dir / "rewrites" / key[:16], build)
    with (folder / "rewrites.jsonl").open(encoding="utf-8") as file:
        return [json.loads(line)["rewrites"] for line in file]


def rewriter_fingerprint(config: RewriterConfig) -> str:
    """Hash the settings, and the files of a model that lies in a folder."""
    digest = hashlib.sha256(json.dumps(asdict(config)).encode())
    folder = Path(config.name)
    if folder.is_dir():
        digest = hashlib.sha256(json.dumps(asdict(config) | {"name": None}).encode())
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
