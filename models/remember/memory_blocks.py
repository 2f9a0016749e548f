"""Memory layers in the decoder blocks of a transformers model."""

import importlib

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.models.remember.dense_twin import resized_ffn, twin_width
from triptych.models.remember.index.slot_index import SlotIndex
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_layer import (
    FFNWithMemory,
    MemoryLayer,
    OutputProjection,
    SwiluGate,
)
from triptych.models.remember.values.value_table import ValueTable


def memory_layers(module: nn.Module) -> list[MemoryLayer]:
    """Return every memory layer in a module, in order."""
    return [child for child in module.modules() if isinstance(child, MemoryLayer)]


def memory_block_numbers(model: nn.Module) -> list[int]:
    """Return the number of the block of each memory layer, in order, as `memory.layers` has them.

    The number of the layer itself stands for a layer outside of numbered blocks.
    """
    names = [n for n, child in model.named_modules() if isinstance(child, MemoryLayer)]
    blocks = [next((int(p) for p in name.split(".") if p.isdigit()), None) for name in names]
    return [number if block is None else block for number, block in enumerate(blocks)]


def describe_memory(model: nn.Module) -> list[tuple[str, str]]:
    """Describe a model's memory in one row, a pair of name and text; no row without memory.

    The row tells which blocks read how many slots, and the parameters of the tables.
    """
    blocks = ", ".join(map(str, memory_block_numbers(model)))
    tables = [table.weight for table in value_tables(model)]
    if not blocks or not tables:
        return []
    slots = sum(len(weight) for weight in tables)
    values = sum(weight.numel() for weight in tables)
    where = "blocks" if "," in blocks else "block"
    return [("memory", f"{slots:,} slots, {values:,} of the parameters, read by {where} {blocks}")]


def memories_beside(module: nn.Module) -> list[FFNWithMemory]:
    """Return every FFN with a memory beside it, in order."""
    return [child for child in module.modules() if isinstance(child, FFNWithMemory)]


def value_tables(module: nn.Module) -> list[ValueTable]:
    """Return every value table in a module, once each."""
    return [child for child in module.modules() if isinstance(child, ValueTable)]


def decoder_blocks(model: PreTrainedModel) -> list[nn.Module]:
    """Return the decoder blocks in order, each with its FFN as `mlp`.

    Raises:
        ValueError: if the model has no such blocks.
    """
    count = getattr(model.config, "num_hidden_layers", None)
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            blocks = list(module)
            if all(isinstance(getattr(block, "mlp", None), nn.Module) for block in blocks):
                return blocks
    raise ValueError(
        f"{type(model).__name__} has no list of {count} blocks with an `mlp`; memory layers fit "
        f"Llama-, Qwen- and GPT-2-like decoders"
    )


@torch.no_grad()
def refuse_other_ffns(model: PreTrainedModel, numbers: list[int]) -> None:
    """Check in one forward pass that FFNs map one tensor of hidden states to another.

    Args:
        model: A plain model; it stays as it is. One on the meta device is not run.
        numbers: The blocks that memory is put into.

    Raises:
        ValueError: if an FFN takes or returns anything else, such as a residual or a router's
            scores.
    """
    if model.device.type == "meta":
        return
    blocks = decoder_blocks(model)
    problems = {number: "is not called in a forward pass" for number in numbers}

    def note(number: int, args: tuple[object, ...], kwargs: dict[str, object], out: object) -> None:
        states = args[0] if args else None
        if len(args) != 1 or kwargs or not isinstance(states, torch.Tensor):
            problems[number] = "takes more than the hidden states, such as a residual"
        elif not isinstance(out, torch.Tensor) or out.shape != states.shape:
            problems[number] = f"returns a {type(out).__name__} and not one tensor of hidden states"
        else:
            problems.pop(number, None)

    handles = [
        _ffn(blocks[number]).register_forward_hook(
            lambda _, args, kwargs, out, number=number: note(number, args, kwargs, out),
            with_kwargs=True,
        )
        for number in numbers
    ]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval().base_model(  # without dropout, so without random numbers
            input_ids=torch.zeros(1, 2, dtype=torch.int64, device=model.device), use_cache=False
        )
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    for number, problem in problems.items():
        ffn = type(_ffn(blocks[number])).__name__
        raise ValueError(
            f"{type(model).__name__}: the FFN of block {number} ({ffn}) {problem}, so no memory "
            "fits beside it or in its place; docs/remember.md lists the families that work"
        )


def add_memory(model: PreTrainedModel, memory: MemoryConfig) -> None:
    """Put memory layers, or the FFNs of the dense twin, into the given blocks, in place.

    Args:
        model: The model; new modules take its device, dtype and training mode.
        memory: A resolved config.
    """
    blocks = decoder_blocks(model)
    hidden_size = model.config.hidden_size
    reference = next(model.parameters())
    if memory.dense_twin:
        std = getattr(model.config, "initializer_range", 0.02)
        for number in memory.layers:
            ffn = _ffn(blocks[number])
            width = twin_width(memory, hidden_size, ffn)
            blocks[number].mlp = resized_ffn(ffn, hidden_size, width, std).train(model.training)
        return
    num_tables = 1 if memory.share_values else len(memory.layers)
    with torch.device(reference.device):
        tables = [_value_table(memory, reference.dtype) for _ in range(num_tables)]
        for position, number in enumerate(memory.layers):
            block, ffn = blocks[number], _ffn(blocks[number])
            layer = _memory_layer(memory, hidden_size, tables[min(position, num_tables - 1)])
            layer.to(reference.dtype)
            block.mlp = layer
            if memory.placement == "beside":
                is_open = memory.start == "zero_values"
                block.mlp = beside = FFNWithMemory(ffn, layer, memory.relevance_gate, is_open)
                if beside.relevance is not None:
                    beside.relevance.to(reference.dtype)
            block.mlp.train(model.training)
    # Registered once, at the root: the layers only refer to their tables.
    model.memory_values = nn.ModuleList(tables).train(model.training)


def _ffn(block: nn.Module) -> nn.Module:
    ffn = block.mlp
    assert isinstance(ffn, nn.Module)
    return ffn


def _value_table(memory: MemoryConfig, model_dtype: torch.dtype) -> ValueTable:
    _, value_dim = memory.sizes()
    dtype = memory.dtype() or model_dtype
    table = ValueTable(memory.num_slots, value_dim, memory.value_gradient, dtype)
    if memory.start == "zero_values":
        nn.init.zeros_(table.weight)
    return table


def _memory_layer(memory: MemoryConfig, hidden_size: int, values: ValueTable) -> MemoryLayer:
    gate: nn.Module | None = None
    if memory.gated:
        gate = SwiluGate(hidden_size, values.value_dim)
    elif values.value_dim != hidden_size:
        gate = OutputProjection(hidden_size, values.value_dim)
    return MemoryLayer(hidden_size, memory.top_k, _slot_index(memory), values, gate)


def _slot_index(memory: MemoryConfig) -> SlotIndex:
    module, _, name = memory.index.rpartition(".")
    try:
        index_class = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"memory.index={memory.index!r} cannot be found: {error}") from error
    if not (isinstance(index_class, type) and issubclass(index_class, SlotIndex)):
        raise ValueError(f"memory.index={memory.index!r} is not a SlotIndex")
    return index_class.from_config(memory)
