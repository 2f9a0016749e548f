"""A frozen copy of the initial policy that shares memory where possible."""

import copy
import hashlib

import torch
from torch import nn
from transformers import PreTrainedModel

from triptych.models.remember.memory_blocks import value_tables


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    """Copy a model, sharing its frozen parameters.

    The copy needs memory only for the trainable parameters and for value tables. Frozen value
    tables are copied too, since sparse memory finetuning writes to their rows.

    Args:
        model: The model. Parameters that will not be trained are frozen already.

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

    The model's checkpoint does not contain them, and a resumed run must rebuild the same values.
    """
    shared = {id(parameter) for parameter in model.parameters()}
    digest = hashlib.sha256()
    for name, parameter in reference.named_parameters():
        if id(parameter) not in shared:
            digest.update(f"{name} {parameter.dtype} {tuple(parameter.shape)}".encode())
            digest.update(parameter.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
