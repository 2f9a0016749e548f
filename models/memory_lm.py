"""Memory in any transformers causal language model: insert, build, save, load, generate.

A memory model stays an instance of its family's class, so training, `generate` and
`save_pretrained` are the family's own. What it adds is a `model_type` of its own
(`memory-llama`, ...), so that a loader which does not know it refuses instead of silently
dropping the memory.
"""

import importlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from models.base_lm import BaseLMConfig, build_base_lm
from models.dense_twin import resized_ffn, twin_width
from models.memory_config import MemoryConfig
from models.memory_layer import FFNWithMemory, MemoryLayer, SwiluGate
from models.slot_index import SlotIndex
from models.value_table import ValueTable

_PREFIX = "memory-"


def insert_memory_layers(model: PreTrainedModel, memory: MemoryConfig) -> PreTrainedModel:
    """Put memory layers into a causal language model, in place.

    Args:
        model: A transformers causal LM whose blocks hold their FFN as `mlp` (Llama, Qwen, GPT-2,
            Mistral, Gemma and their kin).
        memory: What to insert and where.

    Raises:
        ValueError: if the model has memory already, has no such blocks, or lacks a named block.

    Returns:
        The same model, now of its family's memory class.
    """
    if getattr(model.config, "memory", None) is not None:
        raise ValueError("this model has memory layers already; build a fresh base to insert others")
    blocks = decoder_blocks(model)
    memory = memory.resolved(model.config.hidden_size, len(blocks))
    family = type(model)
    model.config = _memory_config_class(type(model.config))(
        **_base_settings(model.config), memory=memory.to_dict()
    )
    model.__class__ = _memory_model_class(family)
    _insert(model, memory)
    return model


def build_memory_lm(
    base: BaseLMConfig, memory: MemoryConfig | None, vocab_size: int
) -> PreTrainedModel:
    """Build the base model and insert the memory; `memory=None` gives the plain base."""
    model = build_base_lm(base, vocab_size)
    return model if memory is None else insert_memory_layers(model, memory)


def load_memory_lm(path: str | Path) -> PreTrainedModel:
    """Load a saved memory model, or a plain causal LM, from a folder.

    Raises:
        FileNotFoundError: if the folder has no `config.json`.
        ValueError: if weights are missing from the files, or left over.
    """
    config_file = Path(path) / "config.json"
    if not config_file.is_file():
        raise FileNotFoundError(f"{config_file} not found: give a folder made by save_pretrained")
    model_type = json.loads(config_file.read_text())["model_type"]
    family: Any = AutoModelForCausalLM
    if model_type.startswith(_PREFIX):
        base_config = type(AutoConfig.for_model(model_type.removeprefix(_PREFIX)))
        family = _memory_model_class(_causal_lm_class(base_config))
    model, report = family.from_pretrained(
        path, output_loading_info=True, local_files_only=True, use_safetensors=True
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


def memory_layers(module: nn.Module) -> list[MemoryLayer]:
    """Every memory layer in a module, in order."""
    return [child for child in module.modules() if isinstance(child, MemoryLayer)]


def value_tables(module: nn.Module) -> list[ValueTable]:
    """Every value table in a module, once each."""
    return [child for child in module.modules() if isinstance(child, ValueTable)]


def decoder_blocks(model: PreTrainedModel) -> nn.ModuleList:
    """The list of decoder blocks, each with an `mlp`.

    Raises:
        ValueError: if there is none.
    """
    for module in model.modules():
        if (
            isinstance(module, nn.ModuleList)
            and len(module) == model.config.num_hidden_layers
            and all(isinstance(getattr(block, "mlp", None), nn.Module) for block in module)
        ):
            return module
    raise ValueError(
        f"{type(model).__name__} has no list of {model.config.num_hidden_layers} blocks with an "
        f"`mlp`; memory layers fit Llama-, Qwen- and GPT-2-like decoders"
    )


def _insert(model: PreTrainedModel, memory: MemoryConfig) -> None:
    blocks = decoder_blocks(model)
    hidden_size = model.config.hidden_size
    reference = next(model.parameters())
    if memory.dense_twin:
        std = getattr(model.config, "initializer_range", 0.02)
        for number in memory.layers:
            ffn = blocks[number].mlp
            width = twin_width(memory, hidden_size, ffn)
            blocks[number].mlp = resized_ffn(ffn, hidden_size, width, std)
        return
    num_tables = 1 if memory.share_values else len(memory.layers)
    tables = nn.ModuleList()
    for _ in range(num_tables):
        with torch.device(reference.device):
            tables.append(_table(memory, reference.dtype))
    for position, number in enumerate(memory.layers):
        table = tables[min(position, num_tables - 1)]
        assert isinstance(table, ValueTable)
        with torch.device(reference.device):
            layer = _layer(memory, hidden_size, table).to(reference.dtype)
        layer.train(model.training)
        block = blocks[number]
        block.mlp = layer if memory.placement == "replace" else FFNWithMemory(block.mlp, layer)
    # Registered once, at the root: layers only point at the table they share.
    model.memory_values = tables


def _table(memory: MemoryConfig, model_dtype: torch.dtype) -> ValueTable:
    _, value_dim = memory.sizes()
    dtype = memory.dtype() or model_dtype
    return ValueTable(memory.num_slots, value_dim, memory.value_gradient, dtype)


def _layer(memory: MemoryConfig, hidden_size: int, values: ValueTable) -> MemoryLayer:
    _, value_dim = memory.sizes()
    gate: nn.Module | None = None
    if memory.gated:
        gate = SwiluGate(hidden_size, value_dim)
    elif value_dim != hidden_size:
        gate = OutputProjection(hidden_size, value_dim)
    return MemoryLayer(hidden_size, memory.top_k, _index(memory), values, gate)


class OutputProjection(nn.Module):
    """Without the gate, values of another width than the hidden size are only projected."""

    def __init__(self, hidden_size: int, value_dim: int) -> None:
        super().__init__()
        self.output = nn.Linear(value_dim, hidden_size)
        nn.init.normal_(self.output.weight, std=hidden_size**-0.5)
        nn.init.zeros_(self.output.bias)

    def forward(self, value: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        """Project (..., V) to (..., M); the layer's input is not used."""
        out: torch.Tensor = self.output(value)
        return out


def _index(memory: MemoryConfig) -> SlotIndex:
    """Build the slot index; only classes of this package, so that loading a file runs no other code."""
    module_name, _, class_name = memory.index.rpartition(".")
    if not module_name.startswith("models."):
        raise ValueError(f"memory.index={memory.index!r} must be a class path that begins `models.`")
    try:
        index_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"memory.index={memory.index!r} cannot be found: {error}") from error
    if not (isinstance(index_class, type) and issubclass(index_class, SlotIndex)):
        raise ValueError(f"memory.index={memory.index!r} is not a SlotIndex")
    return index_class.from_config(memory)


def _base_settings(config: PretrainedConfig) -> dict[str, Any]:
    """A config's settings, without the labels that belong to its class and its files."""
    settings = config.to_dict()
    for name in ("model_type", "architectures", "transformers_version"):
        settings.pop(name, None)
    return settings


def _causal_lm_class(config_class: type[PretrainedConfig]) -> type[PreTrainedModel]:
    found: type[PreTrainedModel] = AutoModelForCausalLM._model_mapping[config_class]
    return found


@cache
def _memory_config_class(base: type[PretrainedConfig]) -> type[PretrainedConfig]:
    """The family's config with a model_type of its own and the memory's settings."""

    def __init__(self: Any, memory: dict[str, Any] | None = None, **settings: Any) -> None:
        base.__init__(self, **settings)
        self.memory = memory

    name = f"Memory{base.__name__}"
    made = type(name, (base,), {"model_type": _PREFIX + base.model_type, "__init__": __init__})
    AutoConfig.register(made.model_type, made)
    return made


@cache
def _memory_model_class(base: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The family's causal LM, which builds its memory layers from its config."""

    def __init__(self: Any, config: PretrainedConfig) -> None:
        base.__init__(self, config)
        if config.memory is not None:
            _insert(self, MemoryConfig(**config.memory))

    config_class = _memory_config_class(base.config_class)
    namespace = {"config_class": config_class, "__init__": __init__, "__module__": __name__}
    made = type(f"Memory{base.__name__}", (base,), namespace)
    AutoModelForCausalLM.register(config_class, made)
    return made
