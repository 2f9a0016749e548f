"""Precision of weights: float32 for what learns, bfloat16 for frozen matrices under autocast."""

from collections.abc import Iterable, Iterator

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D


def widen_trainable(module: nn.Module, keep: Iterable[nn.Parameter] = ()) -> None:
    """Convert trainable parameters of half precision to float32, in place.

    An update is often smaller than half a step of bfloat16 and would be lost.

    Args:
        module: The module, with frozen parameters frozen already.
        keep: Parameters that keep their precision.
    """
    kept = {id(parameter) for parameter in keep}
    for parameter in module.parameters():
        if parameter.requires_grad and id(parameter) not in kept:
            wide = torch.promote_types(parameter.dtype, torch.float32)
            parameter.data = parameter.data.to(wide)


def narrow_frozen(
    model: PreTrainedModel, only_lossless: bool, keep: Iterable[nn.Parameter] = ()
) -> int:
    """Convert the frozen matrices of linear layers to bfloat16, in place.

    Autocast to bfloat16 rounds them at every use anyway, so all results under it are the same to
    the bit, and no time is spent on the conversion. Embeddings, the output layer, norms and biases
    stay as they are: they also enter float32 arithmetic.

    Args:
        model: A language model that runs under autocast to bfloat16.
        only_lossless: Leave matrices with numbers that bfloat16 cannot represent as they are.
        keep: Parameters that keep their precision, such as those of another model.

    Returns:
        Number of matrices that were converted.
    """
    converted, kept = 0, {id(parameter) for parameter in keep}
    for weight in _frozen_matrices(model):
        if id(weight) in kept:
            continue
        narrow = weight.data.to(torch.bfloat16)
        if not only_lossless or torch.equal(narrow.to(weight.dtype), weight.data):
            weight.data = narrow
            converted += 1
    return converted


def _frozen_matrices(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    # Embeddings and output layer may share their weight with others.
    seen = {id(weight) for end in ends if end is not None for weight in end.parameters()}
    for module in model.modules():
        if isinstance(module, nn.Linear | Conv1D) and id(module.weight) not in seen:
            weight = module.get_parameter("weight")
            seen.add(id(weight))
            if not weight.requires_grad and weight.dtype == torch.float32:
                yield weight
