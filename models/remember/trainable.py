"""Which parameters of a language model learn; all others are frozen."""

from collections.abc import Iterator
from typing import Literal, get_args

from torch import nn
from transformers import PreTrainedModel

from triptych.models.lora import LoRAConfig, add_lora
from triptych.models.remember.memory_blocks import value_tables
from triptych.models.remember.memory_layer import FFNWithMemory, MemoryLayer

Trainable = Literal["all", "lora", "values", "memory", "none"]


def choose_trainable(
    model: PreTrainedModel, trainable: Trainable, lora: LoRAConfig | None = None
) -> None:
    """Freeze what is not to be trained, in place.

    Args:
        model: The model.
        trainable: `all`; `lora`, adapters that are added here; `values`, the slots of the value
            tables; `memory`, those and all else that memory layers are made of (queries, keys,
            norms, gates); `none`.
        lora: The adapters; None: the defaults of `LoRAConfig`.

    Raises:
        ValueError: if the model has no memory to train, `lora` is given without being asked for, or
            `trainable` is none of these words.
    """
    if trainable not in get_args(Trainable):
        names = ", ".join(get_args(Trainable))
        raise ValueError(f"model.init_args.trainable is {trainable!r}: choose among {names}")
    if lora is not None and trainable != "lora":
        raise ValueError(
            f"model.init_args.lora is set, but model.init_args.trainable is {trainable}: set it to "
            "lora, or leave lora out"
        )
    if trainable in ("values", "memory") and not value_tables(model):
        raise ValueError(
            f"model.init_args.trainable is {trainable}, but the model has no memory layers: start "
            "from one that has (init_from), or train all or lora"
        )
    for table in value_tables(model):
        table.set_gradient("dense")  # an optimizer knows no other
    if trainable == "all":
        return
    if trainable == "lora":
        add_lora(model, lora or LoRAConfig())
        return
    model.requires_grad_(False)
    if trainable == "values":
        for table in value_tables(model):
            table.requires_grad_(True)
    elif trainable == "memory":
        for parameter in memory_parameters(model):
            parameter.requires_grad_(True)


def memory_parameters(model: nn.Module) -> Iterator[nn.Parameter]:
    """Every parameter that is there because of the memory: tables, queries, keys, norms, gates."""
    for table in value_tables(model):
        yield from table.parameters()
    for module in model.modules():
        if isinstance(module, MemoryLayer):
            yield from module.parameters()
        elif isinstance(module, FFNWithMemory):  # its memory is met on its own
            for name, child in module.named_children():
                if name not in ("ffn", "memory"):
                    yield from child.parameters()
            yield from module.parameters(recurse=False)
