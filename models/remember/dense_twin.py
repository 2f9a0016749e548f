"""The dense twin of a memory model: FFNs with as many multiply-adds as the memory."""

import copy

from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from triptych.models.remember.memory_config import MemoryConfig


def twin_width(memory: MemoryConfig, hidden_size: int, ffn: nn.Module) -> int:
    """Compute the FFN width with as many multiply-adds per token as the resolved memory layer.

    With `placement: beside` the width of the present FFN is added, since the memory model keeps it.
    """
    inner = _inner_width(ffn, hidden_size)
    num_linears = sum(1 for module in ffn.modules() if _shape(module) is not None)
    width = round(memory.multiply_adds(hidden_size) / (num_linears * hidden_size))
    return max(1, width + (inner if memory.placement == "beside" else 0))


def resized_ffn(ffn: nn.Module, hidden_size: int, width: int, init_std: float) -> nn.Module:
    """Copy an FFN made of `nn.Linear` or GPT-2's `Conv1D`, with another intermediate width.

    Raises:
        ValueError: if the module is not a plain FFN between the hidden size and one other width.
    """
    inner = _inner_width(ffn, hidden_size)
    twin = copy.deepcopy(ffn)
    for parent in list(twin.modules()):
        for name, child in list(parent.named_children()):
            shape = _shape(child)
            if shape is None:
                continue
            num_in, num_out = (width if size == inner else size for size in shape)
            setattr(parent, name, _linear_like(child, num_in, num_out, init_std))
    if hasattr(twin, "intermediate_size"):
        setattr(twin, "intermediate_size", width)  # noqa: B010 - nn.Module types it as a module
    return twin


def _shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear map, None for other modules."""
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.weight.shape[0]), int(module.weight.shape[1])
    return None


def _inner_width(ffn: nn.Module, hidden_size: int) -> int:
    shapes = [shape for module in ffn.modules() if (shape := _shape(module)) is not None]
    widths = {size for shape in shapes for size in shape} - {hidden_size}
    if len(widths) != 1 or not all(hidden_size in shape for shape in shapes):
        raise ValueError(
            f"cannot build a dense twin of {type(ffn).__name__}: its linear maps {shapes} do not "
            f"all lead between the hidden size {hidden_size} and one other width. Choose an "
            f"intermediate_size that differs from the hidden size."
        )
    return widths.pop()


def _linear_like(module: nn.Module, num_in: int, num_out: int, init_std: float) -> nn.Module:
    made: nn.Linear | Conv1D
    if isinstance(module, nn.Linear):
        made = nn.Linear(num_in, num_out, bias=module.bias is not None)
    else:
        made = Conv1D(num_out, num_in)
    like = next(module.parameters())
    nn.init.normal_(made.weight, std=init_std)
    if isinstance(made.bias, Tensor):
        nn.init.zeros_(made.bias)
    return made.to(device=like.device, dtype=like.dtype)
