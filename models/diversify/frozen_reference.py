"""The policy as it was when training began, in as little memory as it can be had."""

import copy
import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.models.remember.memory_blocks import value_tables


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy what can change, share what is frozen.

    Parameters that are frozen now are the same tensors in the copy, so that it costs the memory of
    the trainable ones. Value tables are copied although they are frozen: sparse memory finetuning
    writes to the rows of a frozen table.

    Args:
        model: The model, with everything frozen that will not be trained.

    Returns:
        The copy, frozen and in eval mode.
    """
    tables = {id(table.weight) for table in value_tables(model)}
    shared = {
        id(parameter): parameter
        for parameter in model.parameters()
        if not parameter.requires_grad and id(parameter) not in tables
    }
    made: PreTrainedModel = copy.deepcopy(model, shared)
    for table in value_tables(made):
        table.set_gradient("dense")  # keeps no reads
        table.set_anchor(None)
    made.requires_grad_(False).eval()
    return made


def copied_fingerprint(model: nn.Module, reference: nn.Module) -> str:
    """Hash the parameters that a reference does not share with its model.

    The shared ones are in the model's checkpoint; these are not, and have to come out the same when
    a run is resumed.
    """
    shared = {id(parameter) for parameter in model.parameters()}
    digest = hashlib.sha256()
    for name, parameter in reference.named_parameters():
        if id(parameter) not in shared:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
