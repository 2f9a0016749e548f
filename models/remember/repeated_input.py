"""Frozen parts of a model that are given the same input again: computed once.

A visit to a fact repeats one batch for many steps. Everything below the first memory layer is
frozen, and so are the slots which that layer finds, so all of it comes out the same each time: what
is left of a step is the values, and what lies above them.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from triptych.models.lora import has_adapters
from triptych.models.remember.memory_blocks import decoder_blocks, memory_layers
from triptych.models.remember.memory_layer import FFNWithMemory

# What makes a frozen model come out differently each time, by the names that configs give it.
_RANDOM = ("drop", "noise", "jitter")
# Calls in a row with new input after which nothing is kept any more: this run repeats nothing.
_PATIENCE = 64


class RememberedCall:
    """A module's method that gives its last result again where its input is that of the last call.

    Input is the same if all tensors are equal to the bit, and all else is equal. Nothing is
    remembered of calls without gradients (which are not training), of calls that fill a cache of
    keys and values, or where anything requires a gradient; nor where a weight or what was
    remembered has been changed in place or replaced (changes of `tensor.data` excepted, which torch
    does not count). Where parts of the module have hooks, every call is made, for them to see it.

    Args:
        module: A frozen module, deterministic and without state.
        name: The method.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        self.name = name
        self._last: tuple[Any, list[Any], Any] | None = None
        self._num_new = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the method, or give its last result again."""
        given = (args, kwargs, _autocast(args, kwargs))
        method = getattr(type(self.module), self.name)
        if self._num_new > _PATIENCE or not self._may_remember(given):
            self._last = None
            return method(self.module, *args, **kwargs)
        if self._last is not None:
            before, state, result = self._last
            if state == self._state(before, result) and _equal(before, given):
                self._num_new = 0
                return result
        self._num_new += 1
        result = method(self.module, *args, **kwargs)
        pure = _is_plain(result) and not any(t.requires_grad for t in _tensors(result))
        self._last = (given, self._state(given, result), result) if pure else None
        return result

    def _may_remember(self, given: Any) -> bool:
        if not torch.is_grad_enabled() or torch.is_inference_mode_enabled() or not _is_plain(given):
            return False
        own = (*self.module.parameters(), *self.module.buffers())
        if any(tensor.requires_grad for tensor in (*_tensors(given), *own)):
            return False
        parts = (part for part in self.module.modules() if part is not self.module)
        return not any(part._forward_hooks or part._forward_pre_hooks for part in parts)

    def _state(self, *nodes: Any) -> list[Any]:
        """What changes if somebody changes or replaces one of the tensors, or of the module's."""
        own = (*self.module.parameters(), *self.module.buffers())
        return [
            (tensor.data_ptr(), tensor.requires_grad, tensor.is_inference() or tensor._version)
            for tensor in (*_tensors(nodes), *own)
        ]

    def install(self) -> None:
        """Put this in the method's place, on this one module."""
        setattr(self.module, self.name, self)

    def remove(self) -> None:
        """Leave the module as it was; what is remembered stays, for `install`."""
        if self.module.__dict__.get(self.name) is self:
            delattr(self.module, self.name)

    def __getstate__(self) -> dict[str, Any]:
        """Copies remember nothing."""
        return self.__dict__ | {"_last": None}


def remember_repeated_input(model: PreTrainedModel) -> list[RememberedCall]:
    """Let a frozen model compute what lies below its first memory layer once for repeated input.

    That is whole blocks, the attention and FFN of the layer's own block, and its look-up of slots.
    Results are the same to the bit.

    Args:
        model: With memory layers; all below the first one's values is frozen.

    Returns:
        What was put in; `remove` each. Empty if the model is random in training (has a dropout, or
        a config that names a dropout, noise or jitter above 0), has adapters, or has no list of
        blocks.
    """
    if _is_random(model) or has_adapters(model):
        return []
    try:
        blocks = decoder_blocks(model)
    except ValueError:
        return []
    calls = []
    for block in blocks:
        layers = memory_layers(block)
        if not layers:
            calls.append(RememberedCall(block, "forward"))
            continue
        attentions = [child for name, child in block.named_children() if "attn" in name]
        calls += [RememberedCall(attention, "forward") for attention in attentions]
        if isinstance(block.mlp, FFNWithMemory):
            calls.append(RememberedCall(block.mlp.ffn, "forward"))
        calls.append(RememberedCall(layers[0].index, "lookup"))
        break
    else:
        return []
    for call in calls:
        there = call.module.__dict__.get(call.name)
        if isinstance(there, RememberedCall):  # of a run that broke off
            there.remove()
        elif there is not None:  # somebody else's, which is to be called
            return []
    for call in calls:
        call.install()
    return calls


def _is_random(model: PreTrainedModel) -> bool:
    dropouts = (part for part in model.modules() if isinstance(part, nn.modules.dropout._DropoutNd))
    return any(dropout.p > 0 for dropout in dropouts) or _names_random(model.config.to_dict())


def _names_random(settings: Any) -> bool:
    if isinstance(settings, list | tuple):
        return any(map(_names_random, settings))
    if not isinstance(settings, dict):
        return False
    return any(
        _names_random(value)
        or (any(part in str(key) for part in _RANDOM) and isinstance(value, int | float) and value)
        for key, value in settings.items()
        if not str(key).startswith("summary")  # GPT-2's, of a head that is not there
    )


def _tensors(node: Any) -> Iterator[Tensor]:
    if isinstance(node, Tensor):
        yield node
    elif isinstance(node, dict):
        yield from _tensors(list(node.values()))
    elif isinstance(node, list | tuple):
        for child in node:
            yield from _tensors(child)


def _is_plain(node: Any) -> bool:
    """Whether all of it can be compared: no cache, nothing that is filled on the way.

    Nor a tensor of inference mode, whose changes in place are not counted.
    """
    if isinstance(node, dict):
        return all(map(_is_plain, node.values()))
    if isinstance(node, list | tuple):
        return all(map(_is_plain, node))
    if isinstance(node, Tensor):
        return not node.is_inference()
    return node is None or isinstance(node, bool | int | float | str | torch.dtype)


def _equal(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        same_kind = (one.dtype, one.device) == (other.dtype, other.device)
        return one is other or (same_kind and torch.equal(one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return bool(one == other)


def _autocast(*given: Any) -> torch.dtype | None:
    """The precision that products are made in, if it is not that of the tensors."""
    device = next((tensor.device.type for tensor in _tensors(given)), "cpu")
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
