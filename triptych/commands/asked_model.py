"""A language model that was loaded to be asked: prompts in, replies out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.generation.streamers import BaseStreamer

from triptych.callbacks.exporting.asking_form import TRAINING_TEMPLATE, num_positions
from triptych.models.adapter_folder import tokenizer_source
from triptych.models.end_tokens import end_tokens
from triptych.models.generation import generate_plainly
from triptych.models.remember.memory_lm import load_memory_lm

Message = Mapping[str, str]

DEFAULT_MAX_NEW_TOKENS = 256


class AskedModel:
    """A language model with its tokenizer.

    Args:
        folder: Folder with both.
        device: Name of a device; None: a GPU if there is one.

    Raises:
        OSError: if files are missing.
        ValueError: if weights, tokenizer or device are unusable.
    """

    def __init__(self, folder: Path, device: str | None = None) -> None:
        self.folder = folder
        self.model: Any = load_memory_lm(folder).to(usable_device(device)).eval()
        self.tokenizer: PreTrainedTokenizerBase = _tokenizer(folder)
        self.positions = num_positions(self.model.config)

    def chat_template(self, name: str | None = None, training: bool = True) -> str | None:
        """Return the chat template to ask with; None if the tokenizer has none.

        Args:
            name: Name of the template; None: the one below, or the default.
            training: Prefer the template in which training asked, if it has a name of its own.

        Raises:
            ValueError: if there is no template of this name.
        """
        own = self.tokenizer.chat_template
        known: dict[str, str] = {"default": own} if isinstance(own, str) else dict(own or {})
        if name is not None and name not in known:
            names = ", ".join(known) or "none at all"
            raise ValueError(f"--template {name}: the tokenizer in {self.folder} has {names}")
        preferred = TRAINING_TEMPLATE if training and TRAINING_TEMPLATE in known else "default"
        return known.get(name or preferred)

    # -- prompts ----------------------------------------------------------------------------------

    def encode_text(self, text: str) -> list[int]:
        """Tokenise a text to continue, with a BOS before it if the tokenizer has one."""
        tokenizer: Any = self.tokenizer
        ids: list[int] = tokenizer(text)["input_ids"]
        bos = tokenizer.bos_token_id
        return ids if bos is None or ids[:1] == [bos] else [bos, *ids]

    def encode_chat(self, messages: Sequence[Message], template: str) -> list[int]:
        """Tokenise a conversation up to where the reply begins.

        Raises:
            ValueError: if the template refuses the conversation.
        """
        tokenizer: Any = self.tokenizer
        try:
            encoding = tokenizer.apply_chat_template(
                [dict(message) for message in messages],
                chat_template=template,
                add_generation_prompt=True,
                sanitize_control_tokens=True,
            )
        except Exception as error:  # templates raise errors of any type
            raise ValueError(f"the chat template refuses the conversation: {error}") from error
        return list(encoding["input_ids"])

    # -- replies ----------------------------------------------------------------------------------

    def max_new_tokens(self, wanted: int | None) -> int:
        """Return the length of replies: the wanted one, the export's, or the default."""
        own: int | None = self.model.generation_config.max_new_tokens
        return wanted or own or DEFAULT_MAX_NEW_TOKENS

    @torch.inference_mode()
    def replies(
        self,
        prompts: Sequence[Sequence[int]],
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        samples: int = 1,
        streamer: BaseStreamer | None = None,
    ) -> list[list[str]]:
        """Generate replies to a batch of prompts, which are padded on the left.

        Samples come from the model's whole distribution: penalties and cuts in the folder's
        `generation_config.json` have no effect.

        Args:
            prompts: Token ids of each prompt.
            max_new_tokens: Longest reply; None: as the export says. The model's context bounds it.
            temperature: 0 takes the most likely token each time; None: 0 for a single sample, 1
                for several.
            samples: Replies to each prompt.
            streamer: Receives the tokens of a single reply as they are made.

        Returns:
            For each prompt its replies, without special tokens and surrounding spaces.

        Raises:
            ValueError: if a prompt fills the model's context, or several samples are asked for at
                temperature 0, where all would be the same.
        """
        temperature = float(samples > 1) if temperature is None else temperature
        if samples > 1 and temperature == 0:
            raise ValueError("--samples above 1 at --temperature 0 gives the same answer each time")
        longest = max(len(ids) for ids in prompts)
        length = self.max_new_tokens(max_new_tokens)
        if self.positions is not None:
            if longest >= self.positions:
                raise ValueError(
                    f"a prompt has {longest} tokens, but the model has {self.positions} positions: "
                    "shorten it"
                )
            length = min(length, self.positions - longest)
        ends = end_tokens(self.model, self.tokenizer)
        own: Any = self.tokenizer.pad_token_id
        pad = next((token for token in (own, *ends) if token is not None), 0)
        ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
        device = self.model.device
        made = generate_plainly(
            self.model,
            ends=ends,
            pad_id=pad,
            max_new_tokens=length,
            temperature=temperature,
            num_return_sequences=samples,
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            streamer=streamer,
        )
        texts = self.tokenizer.batch_decode(made[:, longest:], skip_special_tokens=True)
        texts = [text.strip() for text in texts]
        return [texts[i : i + samples] for i in range(0, len(texts), samples)]


def _tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            tokenizer_source(str(folder)), local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"the model in {folder} has no tokenizer that can be loaded") from error
    return tokenizer


def usable_device(name: str | None) -> torch.device:
    """Return a device by its name; None: the best there is.

    Raises:
        ValueError: if it cannot be used.
    """
    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"--device {name} cannot be used: {reason}") from error
    return device
