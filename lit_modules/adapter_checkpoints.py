"""Checkpoints of models with adapters (LoRA): they hold what learns, not the frozen base.

    module.on_save_checkpoint   leave_base_out(checkpoint, model, "model.")
    module.on_load_checkpoint   put_base_back(checkpoint, model, "model.")

A resumed run builds the base again, as it builds the reference policy, and the checkpoint's hash
shows whether it is the same. Checkpoints of earlier versions hold all weights and load as before.
"""

import hashlib
from typing import Any

import torch
from torch import nn

from triptych.models.lora import only_adapters_learn

_KEY = "frozen_base"
_KEPT = "_frozen_base_fingerprint"


def leave_base_out(checkpoint: dict[str, Any], model: nn.Module, prefix: str) -> None:
    """Remove the frozen weights of a model with adapters from a checkpoint, in place.

    Args:
        checkpoint: Lightning's, with `state_dict`.
        model: The language model. Without adapters of `add_lora`, or where more than these learns,
            nothing is left out.
        prefix: Before its names in the `state_dict`, such as `policy.model.`.
    """
    if not only_adapters_learn(model):
        return
    state = checkpoint["state_dict"]
    for name in _frozen(model):
        state.pop(prefix + name, None)
    checkpoint[_KEY] = _fingerprint(model)


def put_base_back(checkpoint: dict[str, Any], model: nn.Module, prefix: str) -> None:
    """Complete a checkpoint of `leave_base_out` by the weights of the model itself, in place.

    Raises:
        ValueError: if the run that wrote it had another base, or this model has no adapters.
    """
    if _KEY not in checkpoint:
        return
    if not only_adapters_learn(model):
        raise ValueError(
            "the checkpoint holds adapters (LoRA) alone, but this model has none, or trains more: "
            "give the model the settings in the checkpoint's config.yaml, above all trainable: lora"
        )
    if checkpoint[_KEY] != _fingerprint(model):
        raise ValueError(
            "the checkpoint holds adapters (LoRA) alone, and they belong to another base model "
            "than this one: give the model the settings in the checkpoint's config.yaml, above all "
            "base.pretrained or init_from, and seed_everything"
        )
    state = checkpoint["state_dict"]
    # What else a quantised matrix saves is no tensor of the model, and cannot be loaded into it.
    own = {*dict(model.named_parameters(remove_duplicate=False)), *dict(model.named_buffers())}
    for name, tensor in model.state_dict().items():
        if name in own:
            state.setdefault(prefix + name, tensor)


def _frozen(model: nn.Module) -> list[str]:
    """Return the names of frozen parameters and of buffers in the `state_dict`."""
    learns = {name for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}
    return [name for name in model.state_dict() if name not in learns]


def _fingerprint(model: nn.Module) -> str:
    """Hash the frozen weights as float32; they do not change, so it is computed once.

    Their precision does not count: frozen matrices are narrowed under bf16-mixed if nothing is lost
    by it (`narrow_frozen`). Of a quantised model, what is not quantised counts: kernels may lay the
    rest out anew.
    """
    known: str | None = getattr(model, _KEPT, None)
    if known is None:
        digest, state = hashlib.sha256(), model.state_dict()
        is_quantised = getattr(model, "is_loaded_in_4bit", False)
        parameters = dict(model.named_parameters(remove_duplicate=False))
        for name in _frozen(model):
            tensor = state[name].detach().cpu()
            if is_quantised and not (name in parameters and tensor.is_floating_point()):
                continue
            values = tensor.float() if tensor.is_floating_point() else tensor
            digest.update(f"{name} {tuple(values.shape)}".encode())
            digest.update(values.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        known = digest.hexdigest()
        setattr(model, _KEPT, known)
    return known
