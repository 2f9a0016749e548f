"""The run's tokenizer: trained here as byte-level BPE, or loaded from the hub or a file."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jsonargparse.typing import PositiveInt
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from triptych.models.adapter_folder import tokenizer_source
from triptych.models.chat_form import ChatForm
from triptych.models.disk_cache import build_once
from triptych.models.pretrained_source import pretrained_source
from triptych.models.remember.memory_config_family import register_family_of

BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"
NUM_BYTES = 256
LONGEST_WORD = 1000  # characters of one kind without a boundary, in training texts
# What `ByteLevel` takes for one word: letters, digits, spaces, or all other signs.
_KINDS = (r"[^\W\d_]", r"\d", r"\s", r"(?:[^\w\s]|_)")
_LONG_WORD = re.compile("|".join(rf"{kind}{{{LONGEST_WORD + 1},}}" for kind in _KINDS))
# Known names of the end-of-text token in a bare tokenizer.json, best first.
KNOWN_EOS = (EOS, "</s>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<eos>", "[SEP]")


@dataclass(frozen=True)
class TokenizerConfig:
    """Choice of the tokenizer.

    Args:
        path: "train" to train byte-level BPE on the run's own training data; else a hub name, a
            folder written by `save_pretrained`, a GGUF file, `smollm2`, or a tokenizer.json.
        vocab_size: Size of a trained vocabulary, with special tokens and the 256 bytes. A short
            text may give a smaller one.
        max_training_bytes: Train on at most this many UTF-8 bytes, divided evenly among the
            sources.
        template_args: Values of the chat template's own variables, such as `enable_thinking: false`
            for Qwen3. Exports keep them.
        system_prompt: System message before every conversation that has none; null: what the chat
            template itself does. Exports keep it.
    """

    path: str = "train"
    vocab_size: PositiveInt = 4096
    max_training_bytes: PositiveInt = 20_000_000
    template_args: dict[str, Any] = field(default_factory=dict)
    system_prompt: str | None = None

    @property
    def chat_form(self) -> ChatForm:
        """What is fixed in the chat template."""
        return ChatForm(self.template_args, self.system_prompt)


def build_tokenizer(
    config: TokenizerConfig,
    texts: Callable[[], Iterable[str]],
    fingerprint: str,
    cache_dir: Path,
) -> PreTrainedTokenizerFast:
    """Train or load the tokenizer; a trained one is cached on disk.

    Text never gives special tokens, not even where it contains their names. A loaded tokenizer
    without BOS or padding uses its EOS for both (padding never counts in a loss). Padding is on the
    left, for generation.

    Args:
        config: Choice of the tokenizer.
        texts: Returns the training texts; called only to train a tokenizer.
        fingerprint: Hash of these texts.
        cache_dir: Folder of cached tokenizers.

    Raises:
        ValueError: if there is no text to train on, `vocab_size` is below 259 (three special
            tokens and all bytes), a loaded tokenizer lacks an EOS or a fast implementation, or its
            chat template cannot take `template_args` or `system_prompt`.
    """
    if config.path == "train":
        if config.vocab_size < NUM_BYTES + 3:
            raise ValueError(
                f"tokenizer.vocab_size is {config.vocab_size}: byte-level BPE needs at least "
                f"{NUM_BYTES + 3} entries (every byte, and {BOS}, {EOS}, {PAD})"
            )
        settings = {
            name: getattr(config, name) for name in ("path", "vocab_size", "max_training_bytes")
        }
        key = hashlib.sha256(json.dumps([settings, fingerprint]).encode()).hexdigest()[:16]
        folder = build_once(
            cache_dir / "tokenizers" / key,
            lambda unfinished: train_bpe(config, texts()).save_pretrained(str(unfinished)),
        )
        tokenizer: PreTrainedTokenizerFast = PreTrainedTokenizerFast.from_pretrained(str(folder))
    else:
        tokenizer = _load(config.path)
    config.chat_form.fix(tokenizer)
    tokenizer.padding_side = "left"
    tokenizer.split_special_tokens = True
    tokenizer.backend_tokenizer.encode_special_tokens = True
    tokenizer.backend_tokenizer.no_truncation()
    tokenizer.backend_tokenizer.no_padding()
    return tokenizer


def train_bpe(config: TokenizerConfig, texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train byte-level BPE, deterministically; decoding restores any text exactly."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=config.vocab_size,
        special_tokens=[BOS, EOS, PAD],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    num_texts = 0

    def counted() -> Iterator[str]:
        nonlocal num_texts
        for text in _up_to(texts, config.max_training_bytes):
            num_texts += 1
            yield from _without_long_words(text)

    tokenizer.train_from_iterator(counted(), trainer)
    if num_texts == 0:
        raise ValueError("no text to train the tokenizer on: the training sources are empty")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        padding_side="left",
        clean_up_tokenization_spaces=False,
    )


def _without_long_words(text: str) -> Iterator[str]:
    """Cut a text in words that are longer than any of a language, such as a megabyte of `=`.

    Training takes more than quadratic time in the length of a word.
    """
    start = 0
    for found in _LONG_WORD.finditer(text):
        for end in range(found.start() + LONGEST_WORD, found.end(), LONGEST_WORD):
            yield text[start:end]
            start = end
    yield text[start:]


def share_bytes(sources: Sequence[Iterable[str]]) -> Iterator[str]:
    """Interleave texts so that all sources contribute about equally many bytes.

    A small source is thus read to its end before a large one exhausts a common budget.

    >>> list(share_bytes([["aaaa", "aaaa"], ["b", "b", "b"]]))
    ['aaaa', 'b', 'b', 'b', 'aaaa']
    """
    open_sources = [iter(source) for source in sources]
    taken = [0] * len(open_sources)
    while open_sources:
        place = taken.index(min(taken))
        text = next(open_sources[place], None)
        if text is None:
            del open_sources[place], taken[place]
        else:
            taken[place] += len(text.encode())
            yield text


def encode_texts(tokenizer: PreTrainedTokenizerFast, texts: Sequence[str]) -> list[list[int]]:
    """Tokenise many texts at once, without special tokens."""
    encodings = tokenizer.backend_tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)
    return [encoding.ids for encoding in encodings]


def document_start(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids before the text of a document: those that the tokenizer itself puts there.

    A tokenizer that puts nothing itself has a BOS before documents only if that token has no other
    use: it differs from EOS, and the chat template, if there is one, writes it as BOS. So the
    tokenizers trained here keep theirs, and a chat model reads no mark of a turn before a text.
    """
    with_special = tokenizer.backend_tokenizer.encode("x", add_special_tokens=True)
    own = with_special.special_tokens_mask
    if any(own):
        return with_special.ids[: own.index(0)] if 0 in own else []
    if tokenizer.bos_token_id is None or tokenizer.bos_token_id == tokenizer.eos_token_id:
        return []
    template = tokenizer.chat_template
    templates = [template] if isinstance(template, str) else (template or {}).values()
    written = [text for text in templates if "bos_token" in text]
    return [tokenizer.bos_token_id] if written or not templates else []


def prompt_start(tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Return the ids before a prompt without text: `document_start`, else BOS or EOS.

    A continuation of nothing needs a token that its first token is predicted from.
    """
    first = tokenizer.bos_token_id
    return document_start(tokenizer) or [tokenizer.eos_token_id if first is None else first]


def token_num_bytes(tokenizer: PreTrainedTokenizerFast) -> np.ndarray:
    """Count the UTF-8 bytes of each token's text, int32 (V,); 0 for special tokens.

    Exact for byte-level tokenizers (ours, GPT-2's, Llama 3's, Qwen's) and for SentencePiece with
    byte fallback. Word pieces ("##ing") count without their mark and without the space before a
    word.
    """
    num_bytes = np.zeros(len(tokenizer), dtype=np.int32)
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    special = set(tokenizer.all_special_ids)
    added = tokenizer.added_tokens_decoder
    decoder = json.loads(tokenizer.backend_tokenizer.to_str())["decoder"]
    byte_level = '"ByteLevel"' in json.dumps(decoder)
    for index, token in enumerate(tokens):
        if token is None or index in special or (index in added and added[index].special):
            continue
        if index in added:
            num_bytes[index] = len(token.encode())
        elif byte_level:  # each character of the token's name is one byte
            num_bytes[index] = len(token)
        elif len(token) == 6 and token.startswith("<0x"):
            num_bytes[index] = 1
        else:
            num_bytes[index] = len(token.removeprefix("##").replace("▁", " ").encode())
    return num_bytes


def _up_to(texts: Iterable[str], max_bytes: int) -> Iterator[str]:
    taken = 0
    for text in texts:
        yield text
        taken += len(text.encode())
        if taken >= max_bytes:
            return


def _load(path: str) -> PreTrainedTokenizerFast:
    try:
        tokenizer: Any
        if path.endswith(".json"):
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=path)
            vocabulary = tokenizer.get_vocab()
            tokenizer.eos_token = next((name for name in KNOWN_EOS if name in vocabulary), None)
        else:
            source = tokenizer_source(pretrained_source(path))
            register_family_of(source)
            tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except Exception as error:
        raise ValueError(
            f'cannot load a tokenizer from {path!r} ({error}): give "train", a hub name, a folder '
            "written by save_pretrained, or a tokenizer.json"
        ) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ValueError(f"the tokenizer {path!r} has no fast implementation: choose another")
    if tokenizer.eos_token is None:
        raise ValueError(
            f"the tokenizer {path!r} has no end-of-text token: give a folder whose "
            "tokenizer_config.json names an eos_token"
        )
    tokenizer.bos_token = tokenizer.bos_token or tokenizer.eos_token
    tokenizer.pad_token = tokenizer.pad_token or tokenizer.eos_token
    return tokenizer
