"""KL to the base: its value on packed rows, its two directions, its frozen copy."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from tests.callbacks.remember.finetuning_runs import (
    OLD_FACTS,
    CopyCheckpoint,
    export,
    finetune,
    finetune_by_yaml,
    logged,
    old_facts,
    resumes_exactly,
    same,
)
from tests.lit_modules.remember.test_memory_pretraining import batch as packed
from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.callbacks.remember.kl_to_base import KLToBase
from triptych.models.remember.memory_lm import load_memory_lm

__all__ = ["export", "finetune", "finetune_by_yaml"]

KEY = "train/kl_to_base_nats_per_token"


def kl(weight: float = 0.8, with_data: bool = False) -> KLToBase:
    return KLToBase(old_facts() if with_data else None, weight)


@pytest.mark.parametrize("direction", ["forward", "reverse"])
def test_the_mean_over_packed_documents_equals_torch_distributions(export, direction):
    """Against each document alone, in float64; padding and last tokens predict nothing."""
    base, current = (load_memory_lm(export).double().eval() for _ in range(2))
    for parameter in current.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    documents = [[1, 5, 6, 7], [1, 9, 2], [1, 3, 3, 3, 2]]
    divergences = []
    for document in documents:
        ids = torch.tensor([document])
        p, q = (Categorical(logits=m(ids).logits[0, :-1]) for m in (base, current))
        divergences.append(kl_divergence(p, q) if direction == "forward" else kl_divergence(q, p))
    expected = torch.cat(divergences)
    assert len(expected) == 3 + 2 + 4

    callback = KLToBase(weight=3.0, direction=direction)
    callback._base = base
    logs = {}
    trainer = SimpleNamespace(world_size=1)
    pl_module = SimpleNamespace(model=current, trainer=trainer, log=logs.__setitem__)
    term = callback.loss_term(pl_module, packed(*documents, length=16))
    torch.testing.assert_close(term, 3.0 * expected.mean(), rtol=1e-10, atol=0)
    torch.testing.assert_close(logs["train/kl_to_base_nats_per_token"], expected.mean())
    term.backward()
    assert all(parameter.grad is None for parameter in base.parameters())
    assert any(parameter.grad.abs().max() > 0 for parameter in current.parameters())


@pytest.mark.parametrize("with_data", [False, True], ids=["batch", "old facts"])
def test_the_first_step_is_free_and_later_ones_are_held(finetune, with_data):
    run = finetune(kl(with_data=with_data))
    measured = finetune(kl(0.0, with_data))
    assert run.logged(KEY)[0] == 0.0
    assert 0 < run.logged(KEY)[-1] < measured.logged(KEY)[-1]
    assert same(measured, finetune())
    assert not same(measured, run)
    # The copy is neither saved nor trained.
    saved = torch.load(run.folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in saved)
    assert set(run.state("KLToBase")) == {"base", "position"}


def test_a_configuration_says_the_same(finetune, finetune_by_yaml):
    arguments = {"weight": 0.8, "data": OLD_FACTS}
    name = "triptych.callbacks.remember.kl_to_base.KLToBase"
    run = finetune_by_yaml(callbacks=[{"class_path": name, "init_args": arguments}])
    in_python = finetune(kl(with_data=True), trainer={"gradient_clip_val": None})
    assert logged(run, KEY) == in_python.logged(KEY)


@pytest.mark.parametrize("with_data", [False, True], ids=["batch", "old facts"])
def test_resumes_exactly(finetune, with_data):
    """The copy is of the model that the run began with, not of where it goes on."""
    resumes_exactly(finetune, lambda: kl(with_data=with_data), KEY)


def test_precision_of_the_copy_is_the_models(finetune):
    run = finetune(kl(), trainer={"precision": "64-true"})
    assert run.logged(KEY)[0] == 0.0


def test_another_base_is_refused_on_resuming(finetune, tmp_path):
    run = finetune(kl(), CopyCheckpoint(), every_n_train_steps=3)
    other = export_tiny_model(tmp_path, seed=5)
    with pytest.raises(ValueError, match="started from another model than this one"):
        finetune(kl(), ckpt_path=run.folder / "checkpoints" / "copy.ckpt", init_from=str(other))


def test_contract():
    callback = pickle.loads(pickle.dumps(KLToBase()))
    assert callback.state_dict() == {}
    assert callback.state_key == "KLToBase"
