"""Quantised bases (QLoRA): a clear error without bitsandbytes, and adapters alone with it."""

import importlib.util
from pathlib import Path

import pytest
import torch

from tests.models.tiny_chat_model import TURN_START, chat_tokenizer, tiny_chat_folder
from triptych.lit_modules.adapter_checkpoints import leave_base_out, put_base_back
from triptych.models.adapter_folder import load_causal_lm, save_adapter
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.lora import LoRAConfig, merged_state_dict

HAS_BITSANDBYTES = importlib.util.find_spec("bitsandbytes") is not None


def test_only_a_pretrained_model_is_quantised():
    with pytest.raises(ValueError, match="a model built from sizes has no weights worth keeping"):
        BaseLMConfig(quantization="nf4")


@pytest.mark.skipif(HAS_BITSANDBYTES, reason="bitsandbytes is there")
def test_without_bitsandbytes_it_is_asked_for(smollm2: str, tmp_path: Path):
    folder = tiny_chat_folder(tmp_path, smollm2)
    with pytest.raises(ModuleNotFoundError, match="pip install bitsandbytes"):
        build_base_lm(BaseLMConfig(pretrained=folder, quantization="nf4"), 49_152)


@pytest.mark.skipif(not HAS_BITSANDBYTES, reason="needs bitsandbytes")
def test_adapters_learn_on_a_quantised_base(smollm2: str, tmp_path: Path):
    folder = tiny_chat_folder(tmp_path / "base", smollm2, width=64)  # for 4-bit kernels
    base = BaseLMConfig(pretrained=folder, pretrained_dtype="float32", quantization="nf4")
    tokenizer = chat_tokenizer(folder)

    def built(trainable: str = "lora"):
        lora = LoRAConfig(rank=2) if trainable == "lora" else None
        config = CausalLMPolicyConfig(base=base, trainable=trainable, lora=lora, max_new_tokens=6)
        return build_policy(config, len(tokenizer), tokenizer)

    with pytest.raises(ValueError, match="the model is quantised"):
        built("all")
    policy = built()
    rollout = policy.sample([{"prompt_ids": [TURN_START, 700, 701], "prompt": "x"}], 4)
    start = policy.token_log_prob(rollout)
    assert torch.equal(policy.reference_token_log_prob(rollout), start)
    start.sum().backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            if parameter.requires_grad:
                assert parameter.dtype == torch.float32
                assert parameter.grad is not None
                parameter += 0.1
    after = policy.token_log_prob(rollout).detach()
    assert not torch.allclose(after, start, atol=1e-3)

    state = {f"model.{name}": tensor for name, tensor in policy.model.state_dict().items()}
    checkpoint = {"state_dict": state}
    leave_base_out(checkpoint, policy.model, "model.")
    assert all(".lora_" in name for name in checkpoint["state_dict"])
    again = built()
    put_base_back(checkpoint, again.model, "model.")
    again.model.load_state_dict(
        {name.removeprefix("model."): t for name, t in checkpoint["state_dict"].items()}
    )
    assert torch.equal(again.token_log_prob(rollout).detach(), after)

    with pytest.raises(ValueError, match="cannot be merged without a loss"):
        merged_state_dict(policy.model)
    save_adapter(policy.model, tmp_path / "adapter")
    whole = load_causal_lm(str(tmp_path / "adapter"))  # on the base in full precision
    assert not [name for name, _ in whole.named_parameters() if "lora" in name]
