"""A causal language model of any transformers architecture, built or loaded."""

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BitsAndBytesConfig,
    PretrainedConfig,
    PreTrainedModel,
)

from triptych.models.adapter_folder import load_causal_lm
from triptych.models.gradient_checkpointing import checkpoint_blocks
from triptych.models.pretrained_source import pretrained_source

# Options that a family's config names differently from most of transformers.
_FAMILY_NAMES = {"gpt2": {"intermediate_size": "n_inner"}}
# Of bitsandbytes, on CPUs: a product without a backward pass, chosen in eval mode.
_INFERENCE_KERNEL = "support_avx512bf16_for_cpu"
_DROPOUT_NAMES = ("attention_dropout", "attn_pdrop", "embd_pdrop", "resid_pdrop")


@dataclass
class BaseLMConfig:
    """A transformers causal language model, from sizes or from a pretrained checkpoint.

    Args:
        family: A transformers `model_type`, such as llama, qwen2, qwen3 or gpt2.
        hidden_size: Width of the residual stream.
        num_layers: Decoder blocks.
        num_heads: Attention heads; must divide `hidden_size`.
        num_kv_heads: Key-value heads for grouped-query attention; must divide `num_heads`. None:
            as many as `num_heads`. Families without it (gpt2) need None.
        intermediate_size: Width of the FFNs; None means 8/3 of the hidden size for gated FFNs, 4
            times for gpt2, rounded up to a multiple of 8.
        max_position_embeddings: Longest context.
        tie_embeddings: Share input and output embeddings.
        dropout: Rate of all the family's dropouts.
        overrides: Further settings of the family's own config, checked against it.
        attn_implementation: How transformers computes attention: `sdpa`, `eager`, `flex_attention`,
            `flash_attention_2`, `flash_attention_3` or another name that it knows. Null: its
            default, which is `sdpa` in most families.
        pretrained: Hub name, folder, GGUF file or `smollm2` to load instead (`pretrained_source`);
            the sizes above are then ignored. An adapter of PEFT is merged into its base.
        pretrained_dtype: Precision to load it in; null: that of its files. What learns becomes
            float32 in any case.
        quantization: `nf4` loads the matrices of linear layers in 4 bits by bitsandbytes, for
            `trainable: lora` (QLoRA, 2305.14314); it computes in `pretrained_dtype`, else bfloat16.
            Needs `pretrained`.
        gradient_checkpointing: Keep only the inputs of decoder blocks for the backward pass, which
            computes the rest again: far less memory, up to a third more time
            (`triptych.models.gradient_checkpointing`).

    Raises:
        ValueError: if heads do not divide, or there is nothing to quantise.
    """

    family: str = "llama"
    hidden_size: int = 128
    num_layers: int = 4
    num_heads: int = 4
    num_kv_heads: int | None = None
    intermediate_size: int | None = None
    max_position_embeddings: int = 512
    tie_embeddings: bool = True
    dropout: float = 0.0
    overrides: dict[str, Any] = field(default_factory=dict)
    attn_implementation: str | None = None
    pretrained: str | None = None
    pretrained_dtype: Literal["float32", "bfloat16"] | None = None
    quantization: Literal["nf4"] | None = None
    gradient_checkpointing: bool = False

    def __post_init__(self) -> None:
        if self.quantization is not None and self.pretrained is None:
            raise ValueError(
                f"base.quantization is {self.quantization}, but a model built from sizes has no "
                "weights worth keeping: set base.pretrained, or leave it out"
            )
        if self.hidden_size % self.num_heads:
            raise ValueError(
                f"base.num_heads={self.num_heads} does not divide base.hidden_size="
                f"{self.hidden_size}; choose a divisor"
            )
        if self.num_kv_heads is not None and self.num_heads % self.num_kv_heads:
            raise ValueError(
                f"base.num_kv_heads={self.num_kv_heads} does not divide base.num_heads="
                f"{self.num_heads}; choose a divisor"
            )

    def to_transformers(self, vocab_size: int) -> PretrainedConfig:
        """Build the family's own config.

        Raises:
            ValueError: if the family is unknown or an override is not one of its settings, or
                the family refuses the sizes.
        """
        try:
            defaults = AutoConfig.for_model(self.family)
        except ValueError as error:
            raise ValueError(
                f"base.family={self.family!r} is not a model_type of the installed transformers; "
                f"try llama, qwen2, qwen3 or gpt2"
            ) from error
        unknown = sorted(key for key in self.overrides if not hasattr(defaults, key))
        if unknown:
            raise ValueError(f"base.overrides {unknown} are not settings of {self.family}")
        renamed = _FAMILY_NAMES.get(self.family, {})
        ratio = 4 if self.family == "gpt2" else 8 / 3
        inner = self.intermediate_size or -(-int(self.hidden_size * ratio) // 8) * 8
        settings: dict[str, Any] = {
            "vocab_size": vocab_size,
            "hidden_size": self.hidden_size,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            renamed.get("intermediate_size", "intermediate_size"): inner,
            "max_position_embeddings": self.max_position_embeddings,
            "tie_word_embeddings": self.tie_embeddings,
            # Set once the tokenizer is known; the family's defaults may exceed this vocabulary.
            "bos_token_id": None,
            "eos_token_id": None,
            "pad_token_id": None,
        }
        if hasattr(defaults, "num_key_value_heads"):
            settings["num_key_value_heads"] = self.num_kv_heads or self.num_heads
        elif self.num_kv_heads is not None:
            raise ValueError(f"{self.family} has no grouped-query attention: drop num_kv_heads")
        if hasattr(defaults, "head_dim"):
            settings["head_dim"] = self.hidden_size // self.num_heads
        settings |= {name: self.dropout for name in _DROPOUT_NAMES if hasattr(defaults, name)}
        try:
            return AutoConfig.for_model(self.family, **(settings | self.overrides))
        except StrictDataclassError as error:  # the family's own checks
            cause = " ".join(str(error.__cause__ or error).split())
            raise ValueError(f"{self.family} cannot be built from `base`: {cause}") from error


def build_base_lm(base: BaseLMConfig, vocab_size: int) -> PreTrainedModel:
    """Build the model from its sizes with fresh weights, or load the pretrained one.

    Args:
        base: The model.
        vocab_size: Number of tokens of the tokenizer.

    Raises:
        ValueError: if a pretrained model has fewer token embeddings than the tokenizer has tokens,
            or the model cannot use the attention implementation.
    """
    model = _built_or_loaded(base, vocab_size)
    if base.gradient_checkpointing:
        checkpoint_blocks(model)
    return model


def _built_or_loaded(base: BaseLMConfig, vocab_size: int) -> PreTrainedModel:
    attention: dict[str, Any] = {}
    if base.attn_implementation is not None:
        attention["attn_implementation"] = base.attn_implementation
    if base.pretrained is None:
        config = base.to_transformers(vocab_size)
        with _explained(base):
            built: PreTrainedModel = AutoModelForCausalLM.from_config(config, **attention)
        return built
    source = pretrained_source(base.pretrained)
    if base.quantization is not None:
        attention["quantization_config"] = _in_four_bits(base)
    with _explained(base):
        model = load_causal_lm(source, dtype=base.pretrained_dtype or "auto", **attention)
    for module in model.modules():
        if hasattr(module, _INFERENCE_KERNEL):
            setattr(module, _INFERENCE_KERNEL, False)
    held = model.config.vocab_size
    if vocab_size > held:
        raise ValueError(
            f"the tokenizer has {vocab_size} tokens but {base.pretrained} embeds only {held}: use "
            f"that model's own tokenizer (data.init_args.tokenizer.path={base.pretrained})"
        )
    return model


def _in_four_bits(base: BaseLMConfig) -> BitsAndBytesConfig:
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModuleNotFoundError(
            "base.quantization is nf4, which the package bitsandbytes does: pip install "
            "bitsandbytes, or leave base.quantization out"
        )
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=base.pretrained_dtype or "bfloat16",
    )


@contextmanager
def _explained(base: BaseLMConfig) -> Iterator[None]:
    """Name the option if transformers refuses an attention implementation."""
    try:
        yield
    except (ValueError, ImportError) as error:
        if base.attn_implementation is None:
            raise
        model = base.pretrained or base.family
        raise ValueError(
            f"{model} cannot be built with base.attn_implementation={base.attn_implementation!r}: "
            f"set it to sdpa, or leave it out. transformers says: {error}"
        ) from error
