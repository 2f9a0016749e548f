"""Sampled against scored log-probabilities in training: measured, weighted, logged."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from torch.utils.data import DataLoader

from tests.lit_modules.diversify.tiny_prompts import module, trainer
from tests.models.diversify.tiny_policies import VOCABULARY, prompt, tiny_tokenizer
from triptych.metrics.display.metric_names import has_name
from triptych.models.base_lm import BaseLMConfig, build_base_lm
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.rewards.base import TextReward

LOGGED = {
    "train/sampling_gap_nats_per_token",
    "train/largest_sampling_gap_nats",
    "train/importance_weighted_share",
}


class Length(TextReward):
    def score_one(self, text, prompt, record):
        return float(len(text))


class TokenPrompts(LightningDataModule):
    def train_dataloader(self):
        rows = [prompt([5, 7, 3, 9]), prompt([4])] * 2
        return DataLoader(rows, 2, collate_fn=list)

    val_dataloader = train_dataloader


class Keeps(Callback):
    """Samples and gradients of every update, and what was logged."""

    def __init__(self):
        self.samples, self.gradients, self.logged = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        experience = pl_module.experience
        old = experience.old_log_prob_BT
        self.samples.append(pl_module.loss_inputs(experience, old.clone()))
        self.gradients.append([p.grad.clone() for p in pl_module.policy.model.parameters()])

    def on_train_batch_end(self, trainer, *_):
        self.logged.append({k: float(v) for k, v in trainer.logged_metrics.items()})


def fit(folder, precision="32-true", **settings):
    seed_everything(5, verbose=False)
    sizes = {"hidden_size": 64, "num_layers": 4, "num_kv_heads": 2}
    base = BaseLMConfig(**sizes, overrides={"initializer_range": 0.2})
    policy = CausalLMPolicy(build_base_lm(base, VOCABULARY).eval(), 24, tiny_tokenizer())
    kept = Keeps()
    made = module(
        policy=policy, reward=Length(), evaluate_first=False, learning_rate=1e-3, **settings
    )
    trainer(folder, kept, max_steps=2, precision=precision).fit(made, TokenPrompts())
    return kept


def test_in_float32_no_completion_is_weighted_and_no_bit_changes(tmp_path):
    kept, without = fit(tmp_path), fit(tmp_path, importance_threshold=None)
    for samples, other in zip(kept.samples, without.samples, strict=True):
        assert (samples.importance_B == 1).all()
        assert other.importance_B is None
    for made, other in zip(kept.gradients, without.gradients, strict=True):
        assert all(torch.equal(*pair) for pair in zip(made, other, strict=True))
    for logged in kept.logged:
        assert logged.keys() >= LOGGED
        assert logged["train/importance_weighted_share"] == 0
        assert 0 <= logged["train/sampling_gap_nats_per_token"] < 1e-5
        assert all(map(has_name, LOGGED))
    assert LOGGED & without.logged[0].keys() == LOGGED - {"train/importance_weighted_share"}


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_in_bfloat16_completions_are_weighted_by_the_gap(tmp_path, precision):
    kept = fit(tmp_path, precision, importance_cap=1.05)
    for samples, logged in zip(kept.samples, kept.logged, strict=True):
        assert (samples.importance_B != 1).any()
        assert samples.importance_B.max() <= 1.05
        assert not samples.importance_B.requires_grad
        assert logged["train/importance_weighted_share"] == pytest.approx(
            (samples.importance_B != 1).double().mean().item()
        )
        assert 1e-4 < logged["train/sampling_gap_nats_per_token"] < 0.05
        assert (
            logged["train/largest_sampling_gap_nats"] > logged["train/sampling_gap_nats_per_token"]
        )


def test_a_threshold_above_the_gap_weighs_nothing(tmp_path):
    kept = fit(tmp_path, "bf16-mixed", importance_threshold=10.0, kl=KlPenalty("k2", place="loss"))
    assert all((samples.importance_B == 1).all() for samples in kept.samples)
    assert all(logged["train/importance_weighted_share"] == 0 for logged in kept.logged)
