"""The choice of the parameters of a language model that learn; all others are frozen."""

from collections.abc import Iterator
from typing import Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from triptych.models.lora import LoRAConfig, add_lora
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import FFNWithMemory, MemoryLayer
from triptych.models.weight_precision import widen_trainable

Trainable = Literal["all", "lora", "values", "memory", "none"]


def choose_trainable(
    model: PreTrainedModel, trainable: Trainable, lora: LoRAConfig | None = None
) -> None:
    """Freeze all parameters that will not be trained, in place.

    Args:
        model: The model.
        trainable: `all`; `lora`, adapters that this function adds; `values`, the slots of the value
            tables; `memory`, the slots and all other parts of memory layers (queries, keys, norms,
            gates); `none`.
        lora: The adapters; None: the defaults of `LoRAConfig`.

    What learns becomes float32, whatever the model's files hold, except for value tables whose
    config names their dtype.

    Raises:
        ValueError: if the model has no memory to train or is quantised, `lora` is given but
            `trainable` is not `lora`, or `trainable` is unknown.
    """
    if trainable not in get_args(Trainable):
        names = ", ".join(get_args(Trainable))
        raise ValueError(f"model.init_args.trainable is {trainable!r}: choose among {names}")
    if lora is not None and trainable != "lora":
        raise ValueError(
            f"model.init_args.lora is set, but model.init_args.trainable is {trainable}: set it to "
            "lora, or leave lora out"
        )
    if getattr(model, "is_loaded_in_4bit", False) and trainable not in ("lora", "none"):
        raise ValueError(
            f"model.init_args.trainable is {trainable}, but the model is quantised "
            "(base.quantization): set it to lora, or leave base.quantization out"
        )
    if trainable in ("values", "memory") and not value_tables(model):
        raise ValueError(
            f"model.init_args.trainable is {trainable}, but the model has no memory layers: start "
            "from one that has (init_from), or train all or lora"
        )
    for table in value_tables(model):
        table.set_gradient("dense")  # the only one that optimizers support
    if trainable == "lora":
        add_lora(model, lora or LoRAConfig())
    elif trainable != "all":
        model.requires_grad_(False)
        if trainable == "values":
            for table in value_tables(model):
                table.requires_grad_(True)
        elif trainable == "memory":
            for parameter in memory_parameters(model):
                parameter.requires_grad_(True)
    widen_what_learns(model)


def widen_what_learns(model: PreTrainedModel) -> None:
    """Convert trainable weights to float32, except for value tables with a dtype of their own."""
    memory = getattr(model.config, "memory", None)
    named = memory is not None and MemoryConfig(**memory).dtype() is not None
    widen_trainable(model, [table.weight for table in value_tables(model) if named])


def memory_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Yield all parameters of the memory: tables, queries, keys, norms, gates."""
    for table in value_tables(model):
        yield from table.parameters()
    for module in model.modules():
        if isinstance(module, MemoryLayer):
            yield from module.parameters()
        elif isinstance(module, FFNWithMemory):  # `modules()` visits its memory separately
            for name, child in module.named_children():
                if name not in ("ffn", "memory"):
                    yield from child.parameters()
            yield from module.parameters(recurse=False)
