"""The sides of a policy step on a real chat model with adapters, in its chat template."""

from typing import Any

import torch
from transformers import AutoTokenizer

from triptych.benchmarks.policy_step_sides import PolicySides, PolicySizes
from triptych.datamodules.embedded.tables import EVERYDAY_PROMPTS
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig, build_policy
from triptych.models.lora import LoRAConfig
from triptych.models.pretrained_source import pretrained_source

RANK = 16
#: A step that fits a CPU. `prompt_tokens` and the model's sizes are those of the real ones.
CHAT_SIZES = PolicySizes(num_prompts=4, num_samples=8, new_tokens=32)


def share_of_es(text: str) -> float:
    """Compute a reward of negligible cost that differs between replies.

    >>> share_of_es("see it")
    0.4
    """
    letters = [letter for letter in text.lower() if letter.isalpha()]
    return letters.count("e") / max(1, len(letters))


class ChatSides(PolicySides):
    """Both sides with adapters of rank 16 on all linear layers of one chat model.

    Args:
        source: Chat model: a name, such as `smollm2`, or a folder.
        sizes: Numbers of prompts, samples and new tokens of a step.
        device: Device of the step.
    """

    def __init__(self, source: str, sizes: PolicySizes, device: torch.device) -> None:
        self.sizes, self.device = sizes, device
        self._source = pretrained_source(source)
        self.tokenizer = AutoTokenizer.from_pretrained(self._source, trust_remote_code=False)
        lines = EVERYDAY_PROMPTS.read_text(encoding="utf-8").splitlines()[: sizes.num_prompts]
        messages = [[{"role": "user", "content": line}] for line in lines]
        encoded: Any = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True)
        self.prompts = [
            {"prompt_ids": ids, "prompt": chat}
            for ids, chat in zip(encoded["input_ids"], messages, strict=True)
        ]
        config = CausalLMPolicyConfig(
            base=BaseLMConfig(pretrained=source, pretrained_dtype="float32"),
            trainable="lora",
            lora=LoRAConfig(rank=RANK),
            max_new_tokens=sizes.new_tokens,
        )
        self.policy = build_policy(config, len(self.tokenizer), self.tokenizer).to(device)
        self._begin()

    def score(self, text: str) -> float:
        """Compute the reward of a completion."""
        return share_of_es(text)

    def _trl_model(self) -> str:
        return str(self._source)

    def _trl_adapters(self) -> dict[str, Any]:
        from peft import LoraConfig

        targets = "all-linear"
        return {"peft_config": LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=targets)}
