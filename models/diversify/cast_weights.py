"""Weights cast to autocast's dtype once for many forward passes."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

#: Modules whose parameters autocast casts at every call.
_CAST_AT_EVERY_CALL = (nn.Linear, Conv1D)


@contextmanager
def weights_cast_once(model: PreTrainedModel) -> Iterator[None]:
    """Let the linear layers of a model hold weights in autocast's dtype, without gradient.

    Autocast casts float32 weights at every call, and keeps the result only for those that require a
    gradient. A frozen base was therefore cast anew for every decoded token. Within this context
    each weight is cast once, which takes 2 bytes a parameter of the linear layers. The results are
    equal to the bit. Outside autocast, and for weights in half precision, nothing changes. The
    output layer keeps its weight, since its logits are float32 (`float32_logits`). So do modules
    with a true attribute `outside_autocast`, such as the index of a memory layer.

    Only for passes without gradient. Parameters that no linear layer owns, such as the stacked
    experts of a mixture, are still cast at every call if they are frozen.
    """
    device_type = next(model.parameters()).device.type
    if not torch.is_autocast_enabled(device_type):
        yield
        return
    dtype = torch.get_autocast_dtype(device_type)
    kept = {id(model.get_output_embeddings())}
    for module in model.modules():
        if getattr(module, "outside_autocast", False):
            kept |= {id(part) for part in module.modules()}
    made: dict[int, nn.Parameter] = {}
    replaced: list[tuple[nn.Module, str, nn.Parameter]] = []
    try:
        for module in model.modules():
            if id(module) in kept or type(module) not in _CAST_AT_EVERY_CALL:
                continue
            for name, parameter in module._parameters.items():
                if parameter is None or parameter.dtype != torch.float32:
                    continue
                key = id(parameter)
                if key not in made:
                    made[key] = nn.Parameter(parameter.detach().to(dtype), requires_grad=False)
                replaced.append((module, name, parameter))
                module._parameters[name] = made[key]
        yield
    finally:
        for module, name, parameter in replaced:
            module._parameters[name] = parameter
