"""Accumulated micro-batches train as one batch, with token means and rows without a score."""

import zlib
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import seed_everything

from tests.distributed.test_policy_optimization import joined
from tests.lit_modules.diversify.test_policy_optimization import BASE
from tests.lit_modules.diversify.tiny_prompts import trainer
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.diversify.chat_prompts import ChatPrompts, PromptsConfig
from triptych.datamodules.sources.records import RecordSource
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy_config import CausalLMPolicyConfig
from triptych.models.diversify.rollout import Rollout
from triptych.models.remember.memory_config import MemoryConfig
from triptych.objectives.diversify.policy_loss import Grpo, PolicyLoss, Rloo
from triptych.objectives.rewards.base import TextReward

# Each has another number of completions without a score; those of the first have none at all.
PROMPTS = ["Fail.", "One word.", "Two whole words.", "And some words more."]


class Words(TextReward):
    """Share of e and t; fails on all replies to "Fail." and on a third of the others."""

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        if prompt == "Fail." or zlib.crc32(text.encode()) % 3 == 0:
            raise ValueError("no score for this")
        return sum(letter in "et" for letter in text) / max(1, len(text))


class KeepsGradients(PolicyOptimization):
    """Draws for each prompt by its text alone, and keeps what the optimizer is given."""

    gradients: dict[str, torch.Tensor]
    lengths: set[int]

    def sample(self, prompts: Any, step: int) -> Rollout:
        parts = []
        for row in prompts:
            generator = torch.Generator().manual_seed(zlib.crc32(row["prompt"].encode()))
            parts.append(self.policy.sample([row], self.num_samples, generator))
        self.lengths = {int(n) for part in parts for n in part.num_tokens}
        whole = parts[0]
        for part in parts[1:]:
            whole = joined(whole, part)
        return whole

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        self.gradients = {
            name: parameter.grad.clone()
            for name, parameter in self.named_parameters()
            if parameter.grad is not None
        }


def fit(folder: Path, batch_size: int, loss: PolicyLoss, callback: Any = None) -> KeepsGradients:
    file = folder / "prompts.txt"
    file.write_text("\n".join(PROMPTS))
    seed_everything(1, verbose=False)
    source = RecordSource(path=str(file))
    data = ChatPrompts(
        PromptsConfig(source=source, held_out_share=0.0),
        tokenizer=TokenizerConfig(vocab_size=300),
        batch_size=batch_size,
    )
    memory = MemoryConfig(layers=[1], num_keys=12, num_heads=2, top_k=3, qk_norm=True)
    made = KeepsGradients(
        vocab_size=300,
        reward=Words(),
        policy=CausalLMPolicyConfig(
            base=BaseLMConfig(**BASE),
            memory=None if callback is None else memory,
            max_new_tokens=12,
        ),
        loss=loss,
        beta=0.1,
        num_samples=4,
        learning_rate=0.1,
        evaluate_first=False,
        stop_after_failures=None,
    )
    run = trainer(
        folder,
        *([] if callback is None else [callback]),
        max_steps=1,
        accumulate_grad_batches=len(PROMPTS) // batch_size,
    )
    run.fit(made, data)
    return made


@pytest.mark.filterwarnings("ignore:.*could not score:UserWarning")
@pytest.mark.parametrize(
    "loss", [Grpo(token_weighting="token_mean"), Grpo(), Rloo()], ids=["tokens", "rows", "rloo"]
)
def test_accumulated_micro_batches_are_one_batch(tmp_path, loss):
    whole = fit(tmp_path, 4, loss)
    assert len(whole.lengths) > 1  # a mean of means would differ
    assert 4 < whole.experience_log.failed_samples < 16
    for batch_size in (1, 2):
        parts = fit(tmp_path, batch_size, loss)
        assert parts.gradients.keys() == whole.gradients.keys()
        for name, gradient in whole.gradients.items():
            torch.testing.assert_close(parts.gradients[name], gradient, rtol=1e-4, atol=1e-6)
        assert max(gradient.abs().max() for gradient in whole.gradients.values()) > 1e-3


@pytest.mark.filterwarnings("ignore:.*could not score:UserWarning")
def test_the_slots_of_a_memory_learn_as_from_one_batch(tmp_path):
    tables = []
    for batch_size in (4, 1):
        sparse = SparseMemoryFinetuning(
            num_slots=5, ranking="tf", optimizer="sgd", learning_rate=1.0
        )
        made = fit(tmp_path, batch_size, Grpo(token_weighting="token_mean"), sparse)
        tables.append(made.policy.model.memory_values[0].weight.detach().clone())
        tables.append(sparse.rows_written[0])
    one, rows, parts, same_rows = tables
    assert torch.equal(rows, same_rows)
    torch.testing.assert_close(parts, one, rtol=0, atol=1e-6)
