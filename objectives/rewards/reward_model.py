"""A reward model: any sequence classifier of transformers for a prompt and its reply."""

import math
from typing import Any, Literal, Self

import torch
from torch import Tensor
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from triptych.models.diversify.rollout import Rollout
from triptych.objectives.rewards.base import Reward, Scores

# Shapes: B completions, L tokens of a conversation, C classes

Dtype = Literal["float32", "bfloat16", "float16", "auto"]


class RewardModel(Reward):
    """Scores each completion by a frozen sequence-classification model.

    A conversation is formatted by the model's chat template; a model without one reads prompt and
    reply as a pair of texts. Special tokens spelled out in a reply are treated as plain text. The
    model is loaded at first use, kept out of pickles and checkpoints, and never runs remote code.

    Args:
        model: Hub name or folder, such as Skywork/Skywork-Reward-V2-Qwen3-4B.
        label: Class whose logit is the reward, for a model with several classes.
        sigmoid: Return the logistic function of the logit, in (0, 1), instead of the logit.
        batch_size: Completions scored at once.
        max_tokens: Longest conversation, in tokens; null: the model's context. Longer ones are
            truncated at the end.
        dtype: Precision of the weights: float32, bfloat16, float16, or auto (that of the files).

    Raises:
        ValueError: at first use, if the model cannot be loaded or does not have the label. This
            ends the run.

    Source: 2510.20817, section 5 (training reward Skywork-Reward-V2-Qwen3-4B).
    """

    scope = "completion"

    def __init__(
        self,
        model: str,
        label: int = 0,
        sigmoid: bool = False,
        batch_size: int = 16,
        max_tokens: int | None = None,
        dtype: Dtype = "auto",
    ) -> None:
        for name, value, least in (
            ("label", label, 0),
            ("batch_size", batch_size, 1),
            ("max_tokens", max_tokens, 1),
        ):
            if value is not None and value < least:
                raise ValueError(f"{name} is {value}: set it to at least {least}")
        self.model_name = model
        self.label = label
        self.sigmoid = sigmoid
        self.batch_size = batch_size
        self.max_tokens = max_tokens
        self.dtype = dtype
        self.range = (0.0, 1.0) if sigmoid else (-math.inf, math.inf)
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None

    @classmethod
    def example(cls) -> Self:
        """Return a reward with a model of the hub; tests replace it by a folder."""
        return cls("Skywork/Skywork-Reward-V2-Qwen3-0.6B")

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_model": None, "_tokenizer": None}

    def prepare(self, device: torch.device) -> None:
        """Load the model, or move it to the device."""
        if self._model is None:
            self._tokenizer, self._model = self._load()
        self._model.to(device)  # type: ignore[arg-type]

    @torch.no_grad()
    def score(self, rollout: Rollout) -> Scores:
        """Score the completions in batches of similar length."""
        assert self._model is not None, "`prepare` comes first"
        prompts = rollout.prompts or [""] * len(rollout)
        conversations = [
            self._encode(prompt, text) for prompt, text in zip(prompts, rollout.texts, strict=True)
        ]
        order = sorted(range(len(conversations)), key=lambda row: len(conversations[row]))
        reward_B = torch.empty(len(conversations), dtype=torch.float32)
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            logits_BC = self._logits([conversations[row] for row in rows])
            reward_B[rows] = logits_BC[:, self.label].float().cpu()
        return Scores(reward_B.sigmoid() if self.sigmoid else reward_B)

    def _logits(self, conversations: list[list[int]]) -> Tensor:
        assert self._model is not None
        assert self._tokenizer is not None
        device = self._model.device
        longest = max(len(ids) for ids in conversations)
        shape = (len(conversations), longest)
        ids_BL = torch.full(shape, self._model.config.pad_token_id, dtype=torch.int64)
        mask_BL = torch.zeros(shape, dtype=torch.int64)
        for row, ids in enumerate(conversations):  # right-padded: the heads find the last token
            ids_BL[row, : len(ids)] = torch.tensor(ids, dtype=torch.int64)
            mask_BL[row, : len(ids)] = 1
        logits: Tensor = self._model(
            input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)
        ).logits
        return logits

    def _encode(self, prompt: str, text: str) -> list[int]:
        assert self._model is not None
        assert self._tokenizer is not None
        if self._tokenizer.chat_template is not None:
            messages = [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": text},
            ]
            # A BatchEncoding, whatever the annotation says.
            encoding: Any = self._tokenizer.apply_chat_template(
                messages, sanitize_control_tokens=True
            )
        else:
            encoding = self._tokenizer(prompt, text, split_special_tokens=True)
        ids = encoding["input_ids"]
        context = getattr(self._model.config, "max_position_embeddings", None)
        limit = min(limit for limit in (self.max_tokens, context, len(ids)) if limit is not None)
        kept: list[int] = list(ids[:limit])
        return kept or [self._model.config.pad_token_id]

    def _load(self) -> tuple[PreTrainedTokenizerBase, PreTrainedModel]:
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.model_name, trust_remote_code=False)
            model = AutoModelForSequenceClassification.from_pretrained(
                self.model_name, dtype=self.dtype, trust_remote_code=False
            )
        except Exception as error:  # the transport's own errors differ from release to release
            raise ValueError(
                f"cannot load the reward model {self.model_name!r} ({error}): give the hub name or "
                "the folder of a sequence classifier of transformers, with its tokenizer"
            ) from error
        if not self.label < model.config.num_labels:
            raise ValueError(
                f"the reward model {self.model_name!r} has {model.config.num_labels} labels, so "
                f"label {self.label} is none of them: count from 0"
            )
        if model.config.pad_token_id is None:  # the heads of decoders look for it
            model.config.pad_token_id = tokenizer.pad_token_id
        if model.config.pad_token_id is None:
            model.config.pad_token_id = tokenizer.eos_token_id
        return tokenizer, model.eval().requires_grad_(False)
