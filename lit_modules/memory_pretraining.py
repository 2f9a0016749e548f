"""Pretraining of a memory language model on text and facts."""

import math
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from transformers import PreTrainedModel

from lit_modules.language_model_evaluation import Batch, LanguageModelEvaluation
from lit_modules.optimization import build_adamw, clip_apart, warmup_cosine
from models.base_lm import BaseLMConfig
from models.memory_config import MemoryConfig
from models.memory_lm import build_memory_lm, insert_memory_layers, load_memory_lm
from models.segment_mask import segment_attention_mask
from objectives.language_modeling import NextTokenNLL, chunked_next_token_nll, next_token_nll


class MemoryPretraining(LightningModule):
    """Trains a causal language model with memory layers, or its dense twin, on packed documents.

    The loss is the mean negative log-likelihood over the labelled tokens of the whole step, all
    ranks together, so that two processes train as one with twice the batch.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        base: The transformers model under the memory.
        memory: The memory layers; null trains the plain base. `memory.dense_twin: true` trains
            the FLOP-matched dense baseline instead.
        learning_rate: Peak learning rate of all but the values.
        value_learning_rate: Peak learning rate of the memory's values; scheduled like the rest.
        weight_decay: Decay of the matrices.
        value_weight_decay: Decay of the values.
        betas: Adam's.
        warmup_steps: Steps of linear warm-up.
        schedule_steps: Steps until the cosine has run out; null takes the trainer's `max_steps`.
        final_learning_rate_share: What remains of the peak at the end.
        max_new_tokens: Longest generated answer or continuation.
        num_samples: Generated answers shown per set of questions.
        sample_prompts: Texts to continue at each validation, to see what the model writes.
        init_from: Exported folder (or an experiment's config, which is then run first) whose
            weights to start from. A model with memory brings its own; one without gets `memory`.

    Raises:
        ValueError: if `init_from` and `memory` contradict each other, the vocabularies differ, or
            a number is out of range.

    Source: 2510.15103, section 5; 2412.09764, sections 3 and 4.
    """

    def __init__(
        self,
        vocab_size: int,
        base: BaseLMConfig | None = None,
        memory: MemoryConfig | None = None,
        learning_rate: float = 1e-3,
        value_learning_rate: float = 1e-3,
        weight_decay: float = 0.1,
        value_weight_decay: float = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: int = 100,
        schedule_steps: int | None = None,
        final_learning_rate_share: float = 0.1,
        max_new_tokens: int = 16,
        num_samples: int = 16,
        sample_prompts: list[str] | None = None,
        init_from: str | None = None,
    ) -> None:
        super().__init__()
        for name, value, least in (
            ("learning_rate", learning_rate, 0),
            ("value_learning_rate", value_learning_rate, 0),
            ("warmup_steps", warmup_steps, 0),
            ("max_new_tokens", max_new_tokens, 1),
        ):
            if not least <= value < math.inf:
                raise ValueError(f"model.init_args.{name} is {value}: set it to at least {least}")
        self.learning_rate = learning_rate
        self.value_learning_rate = value_learning_rate
        self.weight_decay = weight_decay
        self.value_weight_decay = value_weight_decay
        self.betas = (betas[0], betas[1])
        self.warmup_steps = warmup_steps
        self.schedule_steps = schedule_steps
        self.final_learning_rate_share = final_learning_rate_share
        self.sample_prompts = sample_prompts or []
        self.model = _build(vocab_size, base or BaseLMConfig(), memory, init_from)
        self.evaluation = LanguageModelEvaluation(self.model, max_new_tokens, num_samples)
        #: What the model said in the last validation, as rows of a table.
        self.sample_rows: list[dict[str, Any]] = []
        self._tokens_since, self._since = 0, time.perf_counter()

    # -- training ---------------------------------------------------------------------------------

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """One packed batch: mean NLL over the labelled tokens of all ranks."""
        nll = self.next_token_nll(batch)
        num_tokens = self._over_ranks(nll.num_tokens).clamp(min=1)
        # DDP averages gradients over ranks, so the sum is scaled up to cancel that.
        loss = nll.sum_nats * self.trainer.world_size / num_tokens
        self._log_step(batch, nll, num_tokens)
        return loss

    def next_token_nll(self, batch: Batch) -> NextTokenNLL:
        """NLL of every labelled token, each document seeing only itself."""
        inputs = {
            "input_ids": batch["input_ids"],
            "position_ids": batch["position_ids"],
            "attention_mask": segment_attention_mask(batch["segment_ids"]),
            "use_cache": False,
        }
        head = self.model.get_output_embeddings()
        if getattr(head, "bias", None) is not None or _rescales_logits(self.model):
            return next_token_nll(self.model(**inputs).logits, batch["labels"])
        hidden_BTD = self.model.base_model(**inputs).last_hidden_state
        return chunked_next_token_nll(hidden_BTD, head.weight, batch["labels"])

    def configure_optimizers(self) -> dict[str, Any]:
        """AdamW with the values in their own group, warm-up and cosine."""
        optimizer = build_adamw(
            self.model,
            self.learning_rate,
            self.value_learning_rate,
            self.weight_decay,
            self.value_weight_decay,
            self.betas,
        )
        total = self.schedule_steps or self.trainer.estimated_stepping_batches
        if not math.isfinite(total):
            raise ValueError(
                "the cosine schedule needs an end: set trainer.max_steps (or trainer.max_epochs), "
                "or model.init_args.schedule_steps"
            )
        scheduler = warmup_cosine(
            optimizer, self.warmup_steps, int(total), self.final_learning_rate_share
        )
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the values and the rest apart, by norm."""
        if gradient_clip_val:
            clip_apart(self.model, gradient_clip_val)

    def _log_step(self, batch: Batch, nll: NextTokenNLL, num_tokens: Tensor) -> None:
        sum_nats = self._over_ranks(nll.sum_nats.detach())
        num_bytes = self._over_ranks(nll.num_bytes(batch["num_bytes"]))
        self._tokens_since += int((batch["segment_ids"] > 0).sum()) * self.trainer.world_size
        self.log("train/nll_nats_per_token", sum_nats / num_tokens, prog_bar=True)
        self.log("train/bits_per_byte", sum_nats / math.log(2) / num_bytes.clamp(min=1))
        elapsed = time.perf_counter() - self._since
        if elapsed > 2.0:
            self.log("train/tokens_per_second", self._tokens_since / elapsed, prog_bar=True)
            self._restart_clock()

    def _restart_clock(self) -> None:
        self._tokens_since, self._since = 0, time.perf_counter()

    def _over_ranks(self, value: Tensor) -> Tensor:
        """Sum over ranks."""
        if self.trainer.world_size == 1:
            return value
        total: Tensor = self.trainer.strategy.reduce(value.clone(), reduce_op="sum")
        return total

    # -- validation -------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Tell the model its tokenizer's special tokens, so that exports generate as they are.

        Raises:
            ValueError: if the rows of the data are longer than the model's context.
        """
        data, longest = self.trainer.datamodule, self.model.config.max_position_embeddings
        if data.context_length > longest:
            raise ValueError(
                f"data.init_args.context_length is {data.context_length}, but the model has "
                f"{longest} positions: lower it, or raise model.init_args.base."
                "max_position_embeddings"
            )
        tokenizer = data.tokenizer
        for config in (self.model.config, self.model.generation_config):
            config.bos_token_id = tokenizer.bos_token_id
            config.eos_token_id = tokenizer.eos_token_id
            config.pad_token_id = tokenizer.pad_token_id
        self._restart_clock()

    def on_validation_epoch_start(self) -> None:
        """Begin an evaluation."""
        self.evaluation.reset()

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Text: likelihood. Questions: likelihood of the answer, and a generated answer scored."""
        self.evaluation.record_reads(True)
        nll = self.next_token_nll(batch)
        self.evaluation.add_likelihood(batch, nll)
        self.evaluation.record_reads(False)
        if "prompt_ids" in batch:
            self.evaluation.add_answers(batch, self.trainer.datamodule.tokenizer)

    def on_validation_epoch_end(self) -> None:
        """Log the epoch's numbers and refresh the table of samples."""
        for name, value in self.evaluation.compute().items():
            # Equal on every rank already; saying so again spares a warning of Lightning.
            self.log(name, value, sync_dist=True)
        self.sample_rows = [*self.evaluation.samples, *self._continue_prompts()]
        self._restart_clock()

    def _continue_prompts(self) -> list[dict[str, Any]]:
        tokenizer = self.trainer.datamodule.tokenizer
        rows = []
        for prompt in self.sample_prompts:
            ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
            ids_1T = torch.tensor([[tokenizer.bos_token_id, *ids]], device=self.device)
            text = self.evaluation.generate(tokenizer, ids_1T, torch.ones_like(ids_1T))[0]
            row = {"set": "continuation", "prompt": prompt, "expected": "", "output": text}
            rows.append(row | {"exact_match": None})
        return rows


def _build(
    vocab_size: int, base: BaseLMConfig, memory: MemoryConfig | None, init_from: str | None
) -> PreTrainedModel:
    if init_from is None:
        return build_memory_lm(base, memory, vocab_size)
    model = load_memory_lm(Path(init_from)).train()  # loaded models come in eval mode
    held = model.config.vocab_size
    if held != vocab_size:
        raise ValueError(
            f"the model in {init_from} has {held} tokens but the data's tokenizer {vocab_size}: "
            f"use its own (data.init_args.tokenizer.path={init_from})"
        )
    if memory is None:
        return model
    if getattr(model.config, "memory", None) is not None:
        raise ValueError(
            f"the model in {init_from} has memory layers already: leave `memory` out to use them"
        )
    return insert_memory_layers(model, memory)


def _rescales_logits(model: PreTrainedModel) -> bool:
    """Whether the family does more to its logits than the output layer (Gemma, Cohere, ...)."""
    names = ("final_logit_softcapping", "logit_scale", "logits_scaling")
    return any(getattr(model.config, name, None) for name in names)
