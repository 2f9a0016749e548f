"""Low-rank adapters (LoRA, 2106.09685) by peft, put into a model in place.

    add_lora(model, config)        W x  ->  W x + (alpha / rank) B A x,  W frozen, B = 0
    adapter_state_dict(model)      A and B under the names that PEFT gives them
    merged_state_dict(model)       the plain model's weights, W + (alpha / rank) B A
    merge_lora(model)              the plain model again
    with adapters_off(model): ...  W x, to the bit

peft is imported on first use: the import takes seconds, and most runs have no adapters.
"""

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from triptych.models.weight_precision import widen_trainable

_ADAPTER = "default"  # peft's name
_LORA = ".lora_"
_BASE = ".base_layer."
_MARK = "_has_triptych_adapters"  # others set `peft_config` too


@dataclass
class LoRAConfig:
    """Size of the adapters, and the layers that get one.

    Args:
        rank: Rank of the update of a weight matrix. The paper's baselines: 32, 128, 256.
        alpha: The update is scaled by alpha / rank; null: twice the rank. The paper's values: a
            half, one, two and four times the rank.
        dropout: Dropout rate of the adapters' inputs in training.
        targets: `all_linear` adapts every linear layer except the output layer, including those of
            memory layers (query, gate); `attention` adapts attention only.

    Raises:
        ValueError: if a number is out of range.
    """

    rank: int = 32
    alpha: float | None = None
    dropout: float = 0.0
    targets: Literal["all_linear", "attention"] = "all_linear"

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"lora.rank is {self.rank}: set it to at least 1")
        if self.alpha is not None and self.alpha <= 0:
            raise ValueError(f"lora.alpha is {self.alpha}: set it above 0, or null for 2 * rank")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"lora.dropout is {self.dropout}: set it from 0 to below 1")


def add_lora(model: PreTrainedModel, config: LoRAConfig) -> None:
    """Put adapters into a model, in place, and freeze all other parameters.

    The model's outputs stay the same to the bit: the second factor of every update starts at zero.

    Args:
        model: A causal language model.
        config: Layers and sizes.

    Raises:
        ValueError: if the model has no such layers.
    """
    from peft import LoraConfig, inject_adapter_in_model

    names = target_layers(model, config.targets)
    settings = LoraConfig(
        r=config.rank,
        lora_alpha=2 * config.rank if config.alpha is None else config.alpha,  # type: ignore[arg-type]
        lora_dropout=config.dropout,
        target_modules=names,
    )
    with warnings.catch_warnings():  # peft corrects for GPT-2's transposed matrices, with a warning
        warnings.filterwarnings("ignore", "fan_in_fan_out is set to")
        inject_adapter_in_model(settings, model, _ADAPTER)
    setattr(model, _MARK, True)
    widen_trainable(model)  # peft gives adapters the dtype of the weights beside them


def target_layers(model: PreTrainedModel, targets: Literal["all_linear", "attention"]) -> list[str]:
    """Return the names of the linear layers that get adapters.

    Raises:
        ValueError: if there is none.
    """
    head = model.get_output_embeddings()
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and module is not head
    ]
    if targets == "attention":
        within = tuple(
            f"{name}."
            for name, module in model.named_modules()
            if type(module).__name__.endswith("Attention")
        )
        names = [name for name in names if name.startswith(within)]
    if not names:
        raise ValueError(f"{type(model).__name__} has no linear layers for lora.targets={targets}")
    return names


def merged_state_dict(model: PreTrainedModel) -> dict[str, Tensor]:
    """Return the `state_dict` with the adapters merged; the model does not change.

    Raises:
        ValueError: if the model is quantised.
    """
    if getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            "the model is quantised (base.quantization), so its adapters cannot be merged without "
            "a loss: export them alone (export.merge_adapters: false), then load them on the "
            "model in full precision"
        )
    merged = {
        f"{name}.weight": _merged_weight(layer, model.dtype)
        for name, layer in _adapted_layers(model).items()
    }
    state = {}
    for name, tensor in model.state_dict().items():
        if _LORA not in name:
            name = name.replace(_BASE, ".")
            state[name] = merged.get(name, tensor)
    return state


def merge_lora(model: PreTrainedModel) -> None:
    """Add the updates to the weights and remove the adapters, in place."""
    for name, layer in _adapted_layers(model).items():
        base = layer.get_base_layer()
        base.weight.data = _merged_weight(layer, model.dtype)
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, base)
    if hasattr(model, "peft_config"):
        del model.peft_config
    setattr(model, _MARK, False)


def has_adapters(model: nn.Module) -> bool:
    """Return whether the model has adapters from `add_lora` that are not merged yet."""
    return bool(getattr(model, _MARK, False))


def only_adapters_learn(model: nn.Module) -> bool:
    """Return whether the model has adapters from `add_lora` and everything else is frozen."""
    learns = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    return has_adapters(model) and all(_LORA in name for name in learns)


def adapter_state_dict(model: nn.Module) -> dict[str, Tensor]:
    """Return the adapters under the names that PEFT gives them in its files, on the CPU."""
    return {
        f"base_model.model.{name.replace(f'.{_ADAPTER}.', '.')}": tensor.detach().cpu().contiguous()
        for name, tensor in model.state_dict().items()
        if _LORA in name
    }


def adapter_settings(model: PreTrainedModel) -> Any:
    """Return peft's `LoraConfig` of the adapters, for its `adapter_config.json`."""
    from peft import TaskType

    undeclared: Any = model
    settings = copy.deepcopy(undeclared.peft_config[_ADAPTER])
    settings.task_type, settings.inference_mode = TaskType.CAUSAL_LM, True
    names = set(_adapted_layers(model))
    # Last parts of names are what people write, if they mean the same layers.
    parts = {name.rpartition(".")[2] for name in names}
    linear = {
        name.replace(_BASE.rstrip("."), "")
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and _LORA not in name
    }
    meant = {name for name in linear if name.rpartition(".")[2] in parts}
    settings.target_modules = sorted(parts if meant == names else names)
    return settings


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """Compute without the adapters inside this context; outputs equal the base model's to the bit.

    peft's own switch also freezes and unfreezes the adapters, which breaks a graph that still needs
    its backward pass.
    """
    layers = list(_adapted_layers(model).values())
    before = [layer._disable_adapters for layer in layers]
    for layer in layers:
        layer._disable_adapters = True
    try:
        yield
    finally:
        for layer, was_off in zip(layers, before, strict=True):
            layer._disable_adapters = was_off


def _adapted_layers(model: nn.Module) -> dict[str, Any]:
    from peft.tuners.lora import LoraLayer

    return {name: child for name, child in model.named_modules() if isinstance(child, LoraLayer)}


def _merged_weight(layer: Any, dtype: torch.dtype) -> Tensor:
    """Return the sum in the model's dtype: a frozen matrix may have a narrower one."""
    weight: Tensor = layer.get_base_layer().weight.detach()
    update: Tensor = layer.get_delta_weight(_ADAPTER).detach()
    return (weight + update).to(dtype)
