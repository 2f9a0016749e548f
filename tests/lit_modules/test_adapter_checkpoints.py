"""Checkpoints of adapters alone: what is left out, put back and refused."""

import pytest
import torch

from tests.models.diversify.tiny_policies import tiny_model
from triptych.lit_modules.adapter_checkpoints import leave_base_out, put_base_back
from triptych.models.lora import LoRAConfig, add_lora, merge_lora

PREFIX = "policy.model."


def adapted(seed: int = 0, rank: int = 2):
    model = tiny_model("llama", seed=seed)
    add_lora(model, LoRAConfig(rank=rank))
    return model


def checkpoint_of(model) -> dict:
    state = {PREFIX + name: tensor.clone() for name, tensor in model.state_dict().items()}
    return {"state_dict": state | {"policy._extra_state": "adapters off"}}


def test_what_learns_stays_and_the_rest_comes_back():
    trained, checkpoint = adapted(), {}
    for parameter in trained.parameters():
        if parameter.requires_grad:
            parameter.data += 1.0
    checkpoint = checkpoint_of(trained)
    leave_base_out(checkpoint, trained, PREFIX)
    held = set(checkpoint["state_dict"]) - {"policy._extra_state"}
    assert held == {PREFIX + name for name in trained.state_dict() if ".lora_" in name}
    again = adapted()
    put_base_back(checkpoint, again, PREFIX)
    state = checkpoint["state_dict"]
    state.pop("policy._extra_state")
    again.load_state_dict({name.removeprefix(PREFIX): tensor for name, tensor in state.items()})
    assert all(
        torch.equal(tensor, again.state_dict()[name])
        for name, tensor in trained.state_dict().items()
    )


def test_precision_of_a_frozen_base_does_not_count():
    first, second = adapted(), adapted()
    for model in (first, second):
        for parameter in model.parameters():
            parameter.data = parameter.data.bfloat16().float()
    for parameter in second.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.bfloat16()
    checkpoint = checkpoint_of(first)
    leave_base_out(checkpoint, first, PREFIX)
    put_base_back(checkpoint, second, PREFIX)


def test_other_bases_and_models_without_adapters_are_refused():
    checkpoint = checkpoint_of(adapted())
    leave_base_out(checkpoint, adapted(), PREFIX)
    with pytest.raises(ValueError, match="belong to another base model"):
        put_base_back(checkpoint, adapted(seed=1), PREFIX)
    with pytest.raises(ValueError, match=r"holds adapters \(LoRA\) alone, but this model has none"):
        put_base_back(checkpoint, tiny_model("llama"), PREFIX)


def test_models_that_learn_otherwise_are_kept_whole():
    merged, more = adapted(), adapted()
    merge_lora(merged)
    more.model.norm.weight.requires_grad_(True)
    for model in (tiny_model("llama"), merged, more):
        checkpoint = checkpoint_of(model)
        names = set(checkpoint["state_dict"])
        leave_base_out(checkpoint, model, PREFIX)
        assert set(checkpoint["state_dict"]) == names
        assert "frozen_base" not in checkpoint
        put_base_back(checkpoint, model, PREFIX)  # as of earlier versions: nothing to do
        assert set(checkpoint["state_dict"]) == names
