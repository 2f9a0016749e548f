"""Memory language models: insert memory into a causal LM, build a model, or load one."""

from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

from transformers import AutoModelForCausalLM, PreTrainedModel

from triptych.models.adapter_folder import (
    adapter_base,
    is_adapter_folder,
    load_causal_lm,
    merge_adapter,
)
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.host.checked_folder import check_folder, named_in_errors, read_settings
from triptych.models.progress_bars import no_progress_bars
from triptych.models.remember.memory_blocks import decoder_blocks, refuse_other_ffns, value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_config_family import MODEL_TYPE_PREFIX
from triptych.models.remember.memory_family import (
    become_memory_model,
    memory_model_class_of,
)


def insert_memory_layers(model: PreTrainedModel, memory: MemoryConfig) -> PreTrainedModel:
    """Put memory layers into a causal language model, in place.

    Args:
        model: A transformers causal LM with FFNs named `mlp` in its blocks (Llama, Qwen, GPT-2,
            Mistral, Gemma and similar).
        memory: The memory's settings.

    Raises:
        ValueError: if the model has memory already, no such blocks, not all of the given blocks, or
            FFNs that take or return more than hidden states.

    Returns:
        The same model; its class is now its family's memory class.
    """
    if getattr(model.config, "memory", None) is not None:
        raise ValueError("this model has memory layers already: insert into a plain base model")
    memory = memory.resolved(model.config.hidden_size, len(decoder_blocks(model)))
    refuse_other_ffns(model, memory.layers)
    become_memory_model(model, memory)
    model.config.name_or_path = ""  # it is no longer the model of this name
    return model


def build_memory_lm(
    base: BaseLMConfig, memory: MemoryConfig | None, vocab_size: int
) -> PreTrainedModel:
    """Build the base model and insert the memory; `memory=None` returns the plain base.

    A memory beside the FFNs of a pretrained model starts with zero values, if `memory.start` does
    not say otherwise.
    """
    model = build_base_lm(base, vocab_size)
    is_beside = memory is not None and memory.placement == "beside"
    if memory is not None and is_beside and base.pretrained is not None and memory.start is None:
        memory = replace(memory, start="zero_values")
    return model if memory is None else insert_memory_layers(model, memory)


def load_memory_lm(path: str | Path, trusted_modules: Collection[str] = ()) -> PreTrainedModel:
    """Load a saved memory model, or a plain causal LM, from a folder; safetensors only.

    Args:
        path: The folder. An adapter is merged into its base.
        trusted_modules: Modules or packages outside of Triptych that may be imported for the
            model's slot index. The environment variable `TRIPTYCH_TRUSTED_MODULES` adds to them
            (names separated by commas).

    Raises:
        FileNotFoundError: if the folder has no `config.json`.
        ValueError: if weights are missing from the files, or left over, or the slot index is of
            a module that is not trusted.
    """
    if is_adapter_folder(path):
        base = adapter_base(path)
        is_local = Path(base).is_dir()
        return merge_adapter(
            load_memory_lm(base, trusted_modules) if is_local else load_causal_lm(base), path
        )
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file} not found: give a folder made by save_pretrained")
    check_folder(path)
    model_type: str = read_settings(config_file, model_type=str)["model_type"]
    has_memory = model_type.startswith(MODEL_TYPE_PREFIX)
    loader: Any = memory_model_class_of(model_type) if has_memory else AutoModelForCausalLM
    trust: dict[str, Any] = (
        {"trusted_modules": trusted_modules} if has_memory else {"trust_remote_code": False}
    )
    with no_progress_bars(), named_in_errors(path):
        model, report = loader.from_pretrained(
            path, output_loading_info=True, local_files_only=True, use_safetensors=True, **trust
        )
    problems = {
        kind: sorted(report[kind]) for kind in ("missing_keys", "unexpected_keys") if report[kind]
    }
    if problems:
        raise ValueError(f"the weights in {path} do not fit their config.json: {problems}")
    loaded: PreTrainedModel = model
    for table in value_tables(loaded):
        dtype = MemoryConfig(**loaded.config.memory).dtype()
        if dtype is not None:
            table.to(dtype)
    return loaded
