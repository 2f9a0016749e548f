"""Pretraining of a memory language model on text and facts."""

from pathlib import Path
from typing import Literal

from jsonargparse.typing import NonNegativeFloat, NonNegativeInt, PositiveInt
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from transformers import PreTrainedModel

from triptych.lit_modules.optimization import build_adamw, with_cosine
from triptych.lit_modules.remember.language_model_training import LanguageModelTraining
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, insert_memory_layers, load_memory_lm
from triptych.models.remember.trainable import choose_trainable, widen_what_learns

# Embeddings to tokens of the tokenizer: families round up (Qwen3: 151,936 to 151,669).
_LARGEST_PADDED_SHARE = 1.02


class MemoryPretraining(LanguageModelTraining):
    """Trains a causal language model with memory layers, or its dense twin, on packed documents.

    The loss is the mean negative log-likelihood over the labelled tokens of the whole step on all
    ranks. So two processes train like one with twice the batch.

    Args:
        vocab_size: Tokens of the tokenizer; linked from the data.
        base: The transformers model under the memory.
        memory: The memory layers; null: train the plain base. `memory.dense_twin: true` trains
            the FLOP-matched dense baseline instead.
        learning_rate: Peak learning rate of all parameters except the values.
        value_learning_rate: Peak learning rate of the memory's values, with the same schedule.
        weight_decay: Decay of the matrices.
        value_weight_decay: Decay of the values.
        betas: Adam's.
        warmup_steps: Steps of linear warm-up.
        schedule_steps: Step at the end of the cosine; null: the trainer's `max_steps`.
        final_learning_rate_share: Share of the peak rate at the end.
        max_new_tokens: Longest generated answer or continuation.
        num_samples: Generated answers shown per set of questions.
        sample_prompts: Texts to continue at each validation, for the table of samples.
        init_from: Exported folder (or an experiment's config, which is then run first) with the
            initial weights. A model with memory keeps its memory; one without gets `memory`.
        train_only: `memory` trains the memory layers alone (values, queries, keys, gates), to heal
            a pretrained model that got a memory beside its FFNs. All other parameters stay
            bit-identical. Null: train everything.

    Raises:
        ValueError: if `init_from` and `memory` contradict each other, the vocabularies differ, or
            there is no memory to train alone.

    Source: 2510.15103, section 5; 2412.09764, sections 3 and 4; `train_only` is from reproductions
    with pretrained models, such as github.com/Alex-888888/memory-layers-consumer-hardware.
    """

    def __init__(
        self,
        vocab_size: int,
        base: BaseLMConfig | None = None,
        memory: MemoryConfig | None = None,
        learning_rate: NonNegativeFloat = 1e-3,
        value_learning_rate: NonNegativeFloat = 1e-3,
        weight_decay: NonNegativeFloat = 0.1,
        value_weight_decay: NonNegativeFloat = 0.0,
        betas: tuple[float, float] = (0.9, 0.95),
        warmup_steps: NonNegativeInt = 100,
        schedule_steps: PositiveInt | None = None,
        final_learning_rate_share: NonNegativeFloat = 0.1,
        max_new_tokens: PositiveInt = 16,
        num_samples: int = 16,
        sample_prompts: list[str] | None = None,
        init_from: str | None = None,
        train_only: Literal["memory"] | None = None,
    ) -> None:
        model = _build(vocab_size, base or BaseLMConfig(), memory, init_from)
        if train_only is not None:
            if not value_tables(model):
                raise ValueError(
                    f"model.init_args.train_only is {train_only}, but the model has no memory "
                    "layers: set model.init_args.memory, or leave train_only out"
                )
            choose_trainable(model, train_only)
        widen_what_learns(model)
        super().__init__(model, max_new_tokens, num_samples, sample_prompts)
        self.learning_rate = learning_rate
        self.value_learning_rate = value_learning_rate
        self.weight_decay = weight_decay
        self.value_weight_decay = value_weight_decay
        self.betas = (betas[0], betas[1])
        self.warmup_steps = warmup_steps
        self.schedule_steps = schedule_steps
        self.final_learning_rate_share = final_learning_rate_share

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with a separate group for the values, warm-up and cosine."""
        optimizer = build_adamw(
            self.model,
            self.learning_rate,
            self.value_learning_rate,
            self.weight_decay,
            self.value_weight_decay,
            self.betas,
        )
        total = self.schedule_steps or self.trainer.estimated_stepping_batches
        instead = "model.init_args.schedule_steps"
        return with_cosine(
            optimizer, self.warmup_steps, total, self.final_learning_rate_share, instead
        )


def _build(
    vocab_size: int, base: BaseLMConfig, memory: MemoryConfig | None, init_from: str | None
) -> PreTrainedModel:
    if init_from is None:
        built: PreTrainedModel = build_memory_lm(base, memory, vocab_size).train()
        return built
    model: PreTrainedModel = load_memory_lm(Path(init_from)).train()  # loaded in eval mode
    held = model.config.vocab_size
    if not vocab_size <= held <= _LARGEST_PADDED_SHARE * vocab_size:
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
