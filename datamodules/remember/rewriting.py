"""Rewrites of texts by a language model, cached on disk.

Any causal or sequence-to-sequence model of `transformers` can be used. Its output is not checked
here; the caller checks it as far as possible. A model that was not trained to follow instructions
rarely writes useful text.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import ClosedUnitInterval, PositiveFloat, PositiveInt
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

from triptych.models.disk_cache import build_once
from triptych.models.pretrained_source import pretrained_source

# Returns for each text its rewrites.
Rewriter = Callable[[Sequence[str]], list[list[str]]]


@dataclass(frozen=True)
class RewriterConfig:
    """The model that rewrites texts, and its sampling settings.

    Args:
        name: A model on the hub, or a folder written by `save_pretrained`.
        revision: Commit on the hub; null: the newest. Cached rewrites of an earlier commit are then
            used as they are.
        instruction: The model's instruction, with `{text}` in place of the text to rewrite. A
            tokenizer with a chat template gets it as a user message.
        num_rewrites: Rewrites of each text.
        max_new_tokens: Maximum length of a rewrite, in tokens of the model.
        temperature: Sampling temperature.
        top_p: Nucleus sampling: the probability mass of the tokens to sample from.
        batch_size: Texts rewritten at once.
        seed: Seed of the sampling.
    """

    name: str
    revision: str | None = None
    instruction: str = (
        "Say the following in other words. Keep every name as it is written.\n\n{text}\n\n"
        "In other words:"
    )
    num_rewrites: PositiveInt = 8
    max_new_tokens: PositiveInt = 96
    temperature: PositiveFloat = 0.9
    top_p: ClosedUnitInterval = 0.95
    batch_size: PositiveInt = 8
    seed: int = 0

    def __post_init__(self) -> None:
        if self.instruction.count("{text}") != 1:
            raise ValueError(
                f"model.instruction is {self.instruction!r}: write {{text}} once, in place of the "
                "text to rewrite"
            )


class ModelRewriter:
    """Rewrites texts with a model by seeded sampling: the same texts give the same rewrites.

    Args:
        config: The model and its sampling settings.

    Raises:
        ValueError: if the model cannot be loaded.
    """

    def __init__(self, config: RewriterConfig) -> None:
        self._config = config
        source: Any = {"revision": config.revision}
        try:
            source["pretrained_model_name_or_path"] = pretrained_source(config.name)
            is_seq2seq = AutoConfig.from_pretrained(
                **source, trust_remote_code=False
            ).is_encoder_decoder
            kind: Any = AutoModelForSeq2SeqLM if is_seq2seq else AutoModelForCausalLM
            self._tokenizer: Any = AutoTokenizer.from_pretrained(
                **source, padding_side="left", trust_remote_code=False
            )
            self._model: Any = kind.from_pretrained(**source, dtype="auto", trust_remote_code=False)
        except Exception as error:  # the loaders raise errors of many types
            raise ValueError(
                f"cannot load a model that rewrites from {config.name!r} ({error}): give the name "
                "of a causal or sequence-to-sequence model on the hub, or a folder written by "
                "save_pretrained with its tokenizer"
            ) from error
        self._answers_alone = is_seq2seq  # a causal model's output starts with its prompt
        if self._tokenizer.pad_token is None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        self._model.to("cuda" if torch.cuda.is_available() else "cpu").eval()

    def __call__(self, texts: Sequence[str]) -> list[list[str]]:
        """Return `num_rewrites` rewrites of each text."""
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
            # A chat template adds the special tokens.
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
        written: list[str] = self._tokenizer.batch_decode(ids[:, start:], skip_special_tokens=True)
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
    """Rewrite texts, or read their cached rewrites.

    Args:
        texts: The texts.
        config: The model and its sampling settings. A model in a folder is identified by the
            contents of its files.
        cache_dir: Folder of cached rewrites.
        make_rewriter: Loads the model; called only if the texts are not cached.

    Returns:
        The rewrites of each text, without white space around them.
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
    """Hash the settings, and the files of a model in a local folder."""
    digest = hashlib.sha256(json.dumps(asdict(config)).encode())
    folder = Path(config.name)
    if folder.is_dir():
        digest = hashlib.sha256(json.dumps(asdict(config) | {"name": None}).encode())
        for file in sorted(path for path in folder.iterdir() if path.is_file()):
            digest.update(file.name.encode())
            with file.open("rb") as stream:
                digest.update(hashlib.file_digest(stream, "sha256").digest())
    return digest.hexdigest()
