"""Shards of a language model on several processes (FSDP2), and whole weights from them.

Each decoder block, memory layer and value table is one unit; embeddings, final norm and output
layer are the root's. A unit's weights are gathered for its forward and backward pass and dropped
after each. Gradients and optimizer state exist as shards only, as `DTensor`.
"""

import warnings
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import (
    FSDPModule,
    MixedPrecisionPolicy,
    fully_shard,
    register_fsdp_forward_method,
)
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from triptych.models.remember.memory_blocks import decoder_blocks, memory_layers, value_tables

T = TypeVar("T")
_CALL = "call_with_gathered_weights"


def shard_language_model(
    model: PreTrainedModel, mesh: DeviceMesh, block_dtype: torch.dtype | None = None
) -> None:
    """Shard a causal language model over a mesh, in place.

    Weights are those of the mesh's first process. A scalar cannot be cut: each process keeps it
    whole, and its gradient is averaged as DDP does.

    Args:
        model: The model, with or without memory layers, on any device.
        mesh: One dimension: the processes.
        block_dtype: Dtype in which a block's weights are gathered and, with autocast, multiplied;
            None: as they are. Memory layers, value tables and the root keep their own, so that
            precision does not decide which slot is read. Gradients are summed over processes in
            float32.

    Raises:
        ValueError: if the model is sharded already, or a value table has compact gradients.
    """
    if isinstance(model, FSDPModule):
        raise ValueError("the model is sharded already")
    if any(table.gradient != "dense" for table in value_tables(model)):
        raise ValueError(
            "memory.value_gradient is selected_rows, whose gradients are of whole rows, but the "
            "strategy shards value tables: set memory.value_gradient to dense, or use DDP "
            "(configs/hardware/ddp.yaml)"
        )
    # Blocks add the output of a memory layer to their input; none changes it in place.
    warnings.filterwarnings("ignore", r"FSDP2-wrapped module \(FSDPMemoryLayer\) returned a view")
    _take_from_first_process(model, mesh)
    scalars = {parameter for parameter in model.parameters() if parameter.ndim == 0}
    for scalar in scalars:
        _average_gradient(scalar, mesh)
    own = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    cast = MixedPrecisionPolicy(block_dtype, torch.float32, cast_forward_inputs=False)
    units: list[tuple[Iterable[nn.Module], MixedPrecisionPolicy]] = [
        (value_tables(model), own),
        (memory_layers(model), own),
        (decoder_blocks(model), cast),
        ([model], own),
    ]
    for modules, policy in units:
        for module in modules:
            if policy.param_dtype is not None:  # hooks of a validation run without autocast
                autocast = torch.autocast(mesh.device_type, policy.param_dtype)
                module.forward = autocast(module.forward)
            fully_shard(module, mesh=mesh, mp_policy=policy, ignored_params=scalars)
    setattr(model, _CALL, lambda function, *inputs: function(*inputs))
    register_fsdp_forward_method(model, _CALL)
    # `generate` then runs as many forward passes on every process: each one gathers weights.
    marked: Any = model
    marked._is_fsdp_managed_module = True


def with_gathered_weights(model: nn.Module, function: Callable[..., T], *inputs: Any) -> T:
    """Call a function that uses parts of a model outside of the model's own `forward`.

    Args:
        model: A model, sharded by `shard_language_model` or not.
        function: Called with `inputs`. In it the root's weights are whole, if they were sharded.
        inputs: Inputs of the function.

    Returns:
        The function's result.
    """
    if isinstance(model, FSDPModule):
        result: T = getattr(model, _CALL)(function, *inputs)
        return result
    return function(*inputs)


def is_sharded(model: nn.Module) -> bool:
    """Tell whether a model's parameters are shards."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def local(tensor: Tensor) -> Tensor:
    """Return the part of a tensor that is on this process, sharing memory; all if it is whole."""
    if isinstance(tensor, DTensor):
        part: Tensor = tensor.to_local()
        return part
    return tensor


def gathered_state_dict(model: nn.Module, keep: bool = True) -> dict[str, Tensor]:
    """Gather a sharded model's whole weights and buffers, one tensor at a time; a collective.

    Args:
        model: The model.
        keep: Whether this process wants the weights.

    Returns:
        Tensors on the CPU, shared between tied names; empty without `keep`.
    """
    gathered: dict[str, Tensor] = {}
    seen: dict[int, Tensor] = {}
    owners = dict(model.named_parameters(remove_duplicate=False))
    for name, held in model.state_dict().items():
        key = id(owners.get(name, held))
        if key not in seen:
            whole = held.full_tensor() if isinstance(held, DTensor) else held
            seen[key] = whole.detach().cpu() if keep else whole.new_empty(0)
        if keep:
            gathered[name] = seen[key]
    return gathered


def _take_from_first_process(model: nn.Module, mesh: DeviceMesh) -> None:
    """Let all processes start from the weights of the first, as DDP does."""
    group = mesh.get_group()
    first = torch.distributed.get_global_rank(group, 0)
    for held in [*model.parameters(), *model.buffers()]:
        sent = held.detach().to(mesh.device_type, copy=True)
        torch.distributed.broadcast(sent, first, group)
        held.data.copy_(sent)


def _average_gradient(parameter: nn.Parameter, mesh: DeviceMesh) -> None:
    def average(held: Tensor) -> None:
        if held.grad is not None:
            held.grad.div_(mesh.size())
            torch.distributed.all_reduce(held.grad, group=mesh.get_group())

    if parameter.requires_grad:
        parameter.register_post_accumulate_grad_hook(average)
