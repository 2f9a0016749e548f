"""Parameter groups, schedule and clipping."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

from triptych.lit_modules.commune.agent_finetuning import AgentFinetuning
from triptych.lit_modules.commune.agent_pretraining import AgentPretraining
from triptych.lit_modules.diversify.molecules.molecule_pretraining import MoleculePretraining
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.lit_modules.optimization import (
    ClipsValuesApart,
    build_adamw,
    clip_apart,
    warmup_cosine,
    with_cosine,
)
from triptych.lit_modules.remember.continual_finetuning import ContinualFinetuning
from triptych.lit_modules.remember.memory_pretraining import MemoryPretraining
from triptych.models.base_lm import BaseLMConfig
from triptych.models.remember.memory_config import MemoryConfig
from triptych.models.remember.memory_lm import build_memory_lm


@pytest.fixture
def model():
    base = BaseLMConfig(hidden_size=16, num_layers=3, num_heads=2, max_position_embeddings=16)
    memory = MemoryConfig(layers=[0, 2], num_keys=8, num_heads=2, top_k=4, qk_norm=True)
    return build_memory_lm(base, memory, vocab_size=19)


def build(model):
    return build_adamw(model, 1e-3, 1e-2, 0.1, 0.0, (0.9, 0.95))


def test_every_parameter_is_in_one_group_and_values_in_their_own(model):
    groups = {group["name"]: group for group in build(model).param_groups}
    assert list(groups) == ["decay", "no_decay", "values"]
    ids = [id(p) for group in groups.values() for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters())
    assert [p.shape for p in groups["values"]["params"]] == [(64, 16)]
    assert (groups["values"]["lr"], groups["values"]["weight_decay"]) == (1e-2, 0.0)
    assert all(p.ndim < 2 for p in groups["no_decay"]["params"])
    assert groups["no_decay"]["weight_decay"] == 0.0


def test_frozen_parameters_have_no_group(model):
    for name, parameter in model.named_parameters():
        parameter.requires_grad = "memory_values" in name
    assert [group["name"] for group in build(model).param_groups] == ["values"]


def test_schedule_by_hand():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    scheduler = warmup_cosine(optimizer, warmup_steps=4, total_steps=12, final_share=0.1)
    rates = []
    for _ in range(14):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.5, 1.0, 1.5, 2.0, 2.0])
    assert rates[8] == pytest.approx(2.0 * 0.55)  # half way down the cosine
    assert rates[6] == pytest.approx(2.0 * (0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 4))))
    assert rates[12:] == pytest.approx([0.2, 0.2])


def test_a_cosine_goes_on_every_step_to_its_final_share():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    config = with_cosine(optimizer, warmup_steps=0, total_steps=4.0, final_share=0.05)
    assert config["optimizer"] is optimizer
    schedule = config["lr_scheduler"]
    assert (schedule["interval"], schedule["name"]) == ("step", "lr")
    rates = []
    for _ in range(5):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule["scheduler"].step()
    assert rates[::2] == pytest.approx([2.0, 1.05, 0.1])


@pytest.mark.parametrize(
    ("instead", "words"),
    [(None, r"trainer\.max_epochs\)$"), ("model.init_args.x", r"\), or model\.init_args\.x$")],
)
def test_a_cosine_without_an_end_is_refused(instead, words):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    with pytest.raises(ValueError, match=words):
        with_cosine(optimizer, 0, math.inf, 0.05, instead)


def test_values_and_the_rest_are_clipped_by_their_own_norms(model):
    for name, parameter in model.named_parameters():
        parameter.grad = torch.full_like(parameter, 100.0 if "memory_values" in name else 1e-4)
    others = [p.grad.clone() for n, p in model.named_parameters() if "memory_values" not in n]
    clip_apart(model, 1.0)
    assert torch.linalg.vector_norm(model.memory_values[0].weight.grad) == pytest.approx(1.0)
    left = [p.grad for n, p in model.named_parameters() if "memory_values" not in n]
    assert all(torch.equal(a, b) for a, b in zip(others, left, strict=True))


@pytest.mark.parametrize(
    "kind",
    [
        AgentFinetuning,
        AgentPretraining,
        ContinualFinetuning,
        MemoryPretraining,
        MoleculePretraining,
        PolicyOptimization,
    ],
)
def test_trainers_clip_by_norm(kind):
    assert kind.configure_gradient_clipping is ClipsValuesApart.configure_gradient_clipping


@pytest.mark.parametrize(("max_norm", "norm"), [(1.0, 1.0), (None, 5.0), (0, 5.0)])
def test_a_module_clips_where_the_trainer_says_so(max_norm, norm):
    class Module(ClipsValuesApart, LightningModule):
        pass

    module = Module()
    module.layer = torch.nn.Linear(2, 1, bias=False)
    module.layer.weight.grad = torch.tensor([[3.0, 4.0]])
    module.configure_gradient_clipping(None, max_norm)
    assert float(module.layer.weight.grad.norm()) == pytest.approx(norm, rel=1e-5)


class Small(ClipsValuesApart, LightningModule):
    """A module with tiny gradients; it notes their norm after clipping."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.fused = torch.nn.Linear(8, 8), fused
        self.norms: list[float] = []

    def training_step(self, batch, batch_idx):
        return self.layer(batch[0]).square().mean() * 0.01

    def configure_gradient_clipping(self, *arguments, **settings):
        super().configure_gradient_clipping(*arguments, **settings)
        gradients = [p.grad for p in self.parameters()]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))

    def configure_optimizers(self):
        if self.fused:
            return build_adamw(self, 1e-3, 1e-3, 0.0, 0.0, (0.9, 0.95))
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def small_run(module, clip, tmp_path, **settings):
    rows = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=2,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        **settings,
    )
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(rows), batch_size=8)
    trainer.fit(module, loader)
    return module


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [1.0, 1e-3])
def test_scaled_gradients_are_unscaled_before_they_are_clipped(fused, clip, tmp_path):
    """As `16-mixed` has them: multiplied by the loss scale."""
    precision = MixedPrecision(
        "16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=1024.0)
    )
    exact = small_run(Small(fused), clip, tmp_path)
    mixed = small_run(Small(fused), clip, tmp_path, plugins=[precision])
    assert mixed.norms == pytest.approx(exact.norms, rel=0.01)  # half precision
    torch.testing.assert_close(mixed.layer.weight, exact.layer.weight, rtol=0, atol=2e-5)


def test_clipping_by_value_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"trainer\.gradient_clip_algorithm is value, but Small"):
        small_run(Small(True), 1.0, tmp_path, gradient_clip_algorithm="value")


@pytest.mark.parametrize("strategy", [FSDPStrategy, DeepSpeedStrategy])
def test_clipping_refuses_norms_of_single_shards(strategy, tmp_path):
    module = small_run(Small(True), 1.0, tmp_path)
    module.trainer.strategy.__class__ = type("Sharding", (strategy,), {})
    with pytest.raises(ValueError, match="which Sharding does not show: set it to 0, or use"):
        module.configure_gradient_clipping(module.optimizers().optimizer, 1.0)
