"""All options of a language model policy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from triptych.models.adapter_folder import tokenizer_source
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.gradient_checkpointing import checkpoint_blocks
from triptych.models.lora import LoRAConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm, insert_memory_layers, load_memory_lm
from triptych.models.remember.trainable import Trainable, choose_trainable


@dataclass
class CausalLMPolicyConfig:
    """The optimised model, and the part of it that learns.

    Args:
        init_from: Exported folder of the model to start from, with its tokenizer. None builds
            `base`.
        base: The transformers model without `init_from`.
        memory: Memory layers to insert; None: none, or the model's own.
        trainable: The parameters that learn: `all`, `lora`, `values`, `memory` or `none`. Fewer
            need a smaller reference (`triptych.models.diversify.frozen_reference`). With the
            callback SparseMemoryFinetuning, `values`.
        lora: The adapters if `trainable` is `lora`; None: the defaults.
        max_new_tokens: Longest completion, end token included.
        chunk_tokens: Largest number of tokens with logits in memory at once in scoring.
        micro_batch_tokens: Largest number of tokens (prompts, completions and padding) with
            activations in memory at once in a training step. The gradient is that of the whole
            batch, for up to a third more time. Null: all at once.
        frozen_dtype: Precision of the matrices of linear layers that never learn, under
            `trainer.precision: bf16-mixed`: those of the reference, and of a frozen base if its
            numbers are bfloat16 numbers anyway. Results are the same to the bit in half of the
            memory. Null: bfloat16 on an accelerator, as loaded on the CPU.
        gradient_checkpointing: Keep only the inputs of decoder blocks for the backward pass, which
            computes the rest again. Combines with `micro_batch_tokens`; that alone is faster where
            a single prompt with its completions fits.

    Raises:
        ValueError: if `init_from` and `base` are both given, or a number is out of range.
    """

    init_from: str | None = None
    base: BaseLMConfig | None = None
    memory: MemoryConfig | None = None
    trainable: Trainable = "all"
    lora: LoRAConfig | None = None
    max_new_tokens: int = 64
    chunk_tokens: int = 1024
    micro_batch_tokens: int | None = None
    gradient_checkpointing: bool = False
    frozen_dtype: Literal["float32", "bfloat16"] | None = None

    def __post_init__(self) -> None:
        if self.init_from is not None and self.base is not None:
            raise ValueError(
                f"both init_from={self.init_from} and base are set: leave one of them out"
            )
        for name in ("max_new_tokens", "chunk_tokens", "micro_batch_tokens"):
            number = getattr(self, name)
            if number is not None and number < 1:
                raise ValueError(f"{name} is {number}: set it to at least 1")


def build_policy(
    config: CausalLMPolicyConfig,
    vocab_size: int,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> CausalLMPolicy:
    """Build or load the model, freeze the other parameters, and wrap it in a policy.

    Args:
        config: The policy.
        vocab_size: Number of tokens of the tokenizer.
        tokenizer: The tokenizer; None: the one in `init_from`, if any.

    Raises:
        ValueError: if the model has memory already and `memory` is given, the vocabularies do not
            fit, or the model does not have the parameters to learn.
    """
    model = _model(config, vocab_size)
    if config.gradient_checkpointing:
        checkpoint_blocks(model)
    choose_trainable(model, config.trainable, config.lora)
    folder = config.init_from
    if tokenizer is None and folder:
        source = tokenizer_source(folder)
        if (Path(source) / "tokenizer_config.json").is_file():
            tokenizer = AutoTokenizer.from_pretrained(
                source, local_files_only=True, trust_remote_code=False
            )
    return CausalLMPolicy(
        model,
        config.max_new_tokens,
        tokenizer,
        config.chunk_tokens,
        config.micro_batch_tokens,
        config.frozen_dtype,
    )


def _model(config: CausalLMPolicyConfig, vocab_size: int) -> PreTrainedModel:
    if config.init_from is None:
        return build_memory_lm(config.base or BaseLMConfig(), config.memory, vocab_size)
    model = load_memory_lm(config.init_from)
    held = model.config.vocab_size
    if vocab_size > held:
        raise ValueError(
            f"the model in {config.init_from} has {held} tokens but the data's tokenizer "
            f"{vocab_size}: use its own (data.init_args.tokenizer.path={config.init_from})"
        )
    return model if config.memory is None else insert_memory_layers(model, config.memory)
