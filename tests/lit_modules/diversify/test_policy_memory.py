"""A training step with micro-batches is the training step without them, in less memory."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from torch.utils.data import DataLoader

from tests.lit_modules.diversify.tiny_prompts import NamedLoader, trainer
from tests.models.diversify.tiny_policies import prompt, tiny_model, tiny_tokenizer
from triptych.callbacks.run.nan_guard import NanGuard
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.gradient_checkpointing import checkpoint_blocks
from triptych.models.remember.trainable import choose_trainable
from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.policy_loss import Dap, Grpo, Reinforce, Rloo
from triptych.objectives.rewards.base import TextReward

pytestmark = pytest.mark.filterwarnings("ignore:.*could not score")


class SharesEs(TextReward):
    """Share of a and b among the words; one that begins with a c cannot be scored."""

    def score_one(self, text: str, prompt: str, record: dict[str, Any]) -> float:
        if text.startswith("c"):
            raise ValueError("it begins with a c")
        words = text.split()
        return sum(word in "ab" for word in words) / max(1, len(words))


class Words(LightningDataModule):
    """Four prompts of different lengths, two in a batch."""

    def train_dataloader(self) -> DataLoader:
        rows = [prompt([3] * 2 + [4]), prompt([5, 6]), prompt([7, 8, 9, 3, 4]), prompt([4])]
        return DataLoader(rows, 2, collate_fn=list)

    def val_dataloader(self) -> list[DataLoader]:
        return [NamedLoader([prompt([5])], 1, collate_fn=list)]


class Keeps(Callback):
    """Losses before each backward pass, gradients before each optimizer step, logged numbers."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.gradients: list[dict[str, torch.Tensor]] = []
        self.passes = 0

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(float(loss.detach()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        named = pl_module.policy.model.named_parameters()
        self.gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})


def fit(
    folder: Path,
    budget: int | None,
    kind: str = "llama",
    trainable: str = "all",
    checkpointing: bool = False,
    run: dict[str, Any] | None = None,
    **settings: Any,
) -> tuple[PolicyOptimization, Keeps]:
    seed_everything(3, verbose=False)
    model = tiny_model(kind)
    choose_trainable(model, trainable)
    if checkpointing:
        checkpoint_blocks(model)
    policy = CausalLMPolicy(model, 8, tiny_tokenizer(), micro_batch_tokens=budget)
    kept = Keeps()
    policy.model.get_input_embeddings().register_forward_hook(
        lambda *_: setattr(kept, "passes", kept.passes + torch.is_grad_enabled())
    )
    made = PolicyOptimization(
        vocab_size=None,
        reward=SharesEs(),
        policy=policy,
        num_samples=6,
        learning_rate=1e-5,
        evaluate_first=False,
        **settings,
    )
    loop = trainer(folder, kept, NanGuard(), **({"max_steps": 2} | (run or {})))
    loop.fit(made, Words())
    return made, kept


SETTINGS: dict[str, dict[str, Any]] = {
    "mara": {"mara": Mara(threshold=0.3), "checkpointing": True},
    "mara of all": {"mara": Mara(percentile=60.0, scope="batch"), "loss": Reinforce("batch_mean")},
    "normalised": {"loss": Rloo(normalize_advantages=True), "kl": KlPenalty("k3", "loss")},
    "updates": {"updates_per_rollout": 3, "kl": KlPenalty("k2", "loss", "token")},
    "weighted kl": {
        "updates_per_rollout": 2,
        "loss": Grpo(token_weighting="token_mean", clip_low=1e-4, clip_high=1e-4),
        "kl": KlPenalty("k1", "loss", "token", importance_weighted=True),
    },
    "gspo": {"loss": Grpo(ratio="sequence_mean"), "kl": KlPenalty("forward")},
    "dap": {"loss": Dap(), "beta": 0.5, "mara": Mara(threshold=0.3, algorithm=2)},
    "accumulated": {"run": {"accumulate_grad_batches": 2, "max_steps": 1}},
    "clipped": {"run": {"gradient_clip_val": 0.05}},
    "memory": {"kind": "memory"},
    "values": {"kind": "memory", "trainable": "values"},
    "lora": {"kind": "qwen2", "trainable": "lora"},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_losses_and_gradients_are_those_of_one_pass(tmp_path, settings):
    whole, theirs = fit(tmp_path, None, **settings)
    parts, ours = fit(tmp_path, 50, **settings)
    assert ours.passes > 1.5 * theirs.passes
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5, abs=1e-6)
    assert len(ours.gradients) == len(theirs.gradients) > 0
    for number, expected in enumerate(theirs.gradients):
        found = ours.gradients[number]
        assert found.keys() == expected.keys()
        norm = torch.stack([one.norm() for one in expected.values()]).norm()
        assert norm > 0
        # Later steps start from weights that differ by the rounding of the first.
        tolerance = 1e-6 if number == 0 else 1e-3
        for name, one in expected.items():
            assert (found[name] - one).abs().max() < tolerance * norm, name
    logged = {key for key in whole.trainer.logged_metrics if "second" not in key}
    for key in logged:
        value = float(whole.trainer.logged_metrics[key])
        other = float(parts.trainer.logged_metrics[key])
        assert other == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_bfloat16_trains_too(tmp_path):
    _, exact = fit(tmp_path, None)
    _, ours = fit(tmp_path, 50, checkpointing=True, run={"precision": "bf16-mixed"})
    for name, one in exact.gradients[0].items():
        assert ours.gradients[0][name].dtype == torch.float32
        assert torch.isfinite(ours.gradients[0][name]).all()
        assert one.abs().max() > 0, name


def test_a_loss_that_is_no_number_stops_the_run_before_its_backward_pass(tmp_path):
    class Broken(Rloo):
        def __call__(self, samples):
            loss = super().__call__(samples)
            loss.total = loss.total * torch.nan
            return loss

    with pytest.raises(ArithmeticError, match="The loss is nan at step 0"):
        fit(tmp_path, 50, loss=Broken())
