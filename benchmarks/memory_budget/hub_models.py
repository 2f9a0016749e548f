"""Sizes of the hub's models that the shipped experiments name, for machines without the hub."""

from typing import Any

from transformers import AutoConfig, PretrainedConfig

_QWEN = {"vocab_size": 151936, "tie_word_embeddings": True}
#: Settings as published in each model's ``config.json``.
SIZES: dict[str, tuple[str, dict[str, Any]]] = {
    "Qwen/Qwen3-0.6B": (
        "qwen3",
        _QWEN
        | {"hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    ),
    "Qwen/Qwen3-1.7B": (
        "qwen3",
        _QWEN
        | {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28}
        | {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
    ),
    "Qwen/Qwen2.5-1.5B-Instruct": (
        "qwen2",
        _QWEN
        | {"hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28}
        | {"num_attention_heads": 12, "num_key_value_heads": 2},
    ),
    "Qwen/Qwen2.5-3B-Instruct": (
        "qwen2",
        _QWEN
        | {"hidden_size": 2048, "intermediate_size": 11008, "num_hidden_layers": 36}
        | {"num_attention_heads": 16, "num_key_value_heads": 2},
    ),
    "Skywork/Skywork-Reward-V2-Qwen3-4B": (
        "qwen3",
        _QWEN
        | {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36}
        | {"num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128},
    ),
}
#: Parameters of models that are no causal language models.
NUM_PARAMETERS = {
    "yimingzhang/deberta-v3-large-generation-similarity": 435_000_000,
    "sentence-transformers/all-MiniLM-L6-v2": 22_700_000,
}


def hub_config(name: str) -> PretrainedConfig:
    """Return a model's configuration, from `SIZES` or from the hub or folder.

    Raises:
        OSError: if it is in neither.
    """
    if name not in SIZES:
        found: PretrainedConfig = AutoConfig.from_pretrained(name, trust_remote_code=False)
        return found
    family, settings = SIZES[name]
    made: PretrainedConfig = AutoConfig.for_model(family, **settings)
    return made
