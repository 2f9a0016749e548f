"""KL to the base: its value on packed rows, its two directions, its frozen copy."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from torch.distributions import Categorical, kl_divergence

from tests.callbacks.remember.finetuning_runs import (
    COPY_CHECKPOINT,
    OLD_FACTS,
    callback_state,
    export,
    finetune,
    logged,
    resumes_exactly,
    same,
)
from tests.lit_modules.remember.test_memory_pretraining import batch as packed
from tests.lit_modules.remember.tiny_export import export_tiny_model
from triptych.callbacks.remember.kl_to_base import KLToBase
from triptych.models.remember.memory_lm import load_memory_lm

__all__ = ["export", "finetune"]


def kl(weight: float = 0.8, **arguments: object) -> dict:
    arguments = {"weight": weight, **arguments}
    return {"class_path": "triptych.callbacks.remember.kl_to_base.KLToBase", "init_args": arguments}


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


@pytest.mark.parametrize("data", [None, OLD_FACTS], ids=["batch", "old facts"])
def test_the_first_step_is_free_and_later_ones_are_held(finetune, data):
    run = finetune(callbacks=[kl(data=data)])
    measured = finetune(callbacks=[kl(weight=0.0, data=data)])
    key = "train/kl_to_base_nats_per_token"
    assert logged(run, key)[0] == 0.0
    assert 0 < logged(run, key)[-1] < logged(measured, key)[-1]
    assert same(measured, finetune())
    assert not same(measured, run)


@pytest.mark.parametrize("data", [None, OLD_FACTS], ids=["batch", "old facts"])
def test_resumes_exactly(finetune, data):
    """The copy is of the model that the run began with, not of where it goes on."""
    resumes_exactly(finetune, kl(data=data), "train/kl_to_base_nats_per_token")


def test_the_copy_is_not_saved_nor_trained(finetune):
    run = finetune(callbacks=[kl()])
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert all(name.startswith("model.") for name in state)
    assert set(callback_state(run, "KLToBase")) == {"base", "position"}


def test_precision_of_the_copy_is_the_models(finetune):
    run = finetune("--trainer.precision", "64-true", callbacks=[kl()])
    assert logged(run, "train/kl_to_base_nats_per_token")[0] == 0.0


def test_another_base_is_refused_on_resuming(finetune, tmp_path):
    words = ("--checkpoint.every_n_train_steps", 3)
    run = finetune(*words, callbacks=[kl(), COPY_CHECKPOINT])
    other = export_tiny_model(tmp_path, seed=5)
    with pytest.raises(ValueError, match="started from another model than this one"):
        finetune(
            *("--ckpt_path", run / "checkpoints" / "copy.ckpt"),
            callbacks=[kl()],
            init_from=str(other),
        )


def test_contract():
    callback = pickle.loads(pickle.dumps(KLToBase()))
    assert callback.state_dict() == {}
    assert callback.state_key == "KLToBase"
