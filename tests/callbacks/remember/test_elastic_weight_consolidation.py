"""EWC: the Fisher information, the pull back, and what a checkpoint keeps."""

import pickle
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from tests.callbacks.remember.finetuning_runs import (
    CopyCheckpoint,
    export,
    finetune,
    finetune_by_yaml,
    old_facts,
    resumes_exactly,
    same,
)
from tests.lit_modules.remember.test_continual_finetuning import FreezeAll
from triptych.callbacks.remember.elastic_weight_consolidation import ElasticWeightConsolidation
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import Facts, FactsConfig
from triptych.models.remember.memory_lm import load_memory_lm

__all__ = ["export", "finetune", "finetune_by_yaml"]

NAME = "ElasticWeightConsolidation"
KEY = "train/ewc_penalty_nats"
STREAM = {
    "class_path": "triptych.datamodules.remember.facts.fact_stream.FactStream",
    "init_args": {"facts": {"num_facts": 5, "subset_seed": 1}, "context_length": 96},
}


def ewc(weight: float = 0.5, num_rows: int = 3) -> ElasticWeightConsolidation:
    return ElasticWeightConsolidation(old_facts(), weight, num_rows)


def fisher_by_hand(export, num_rows: int) -> dict[str, torch.Tensor]:
    """Row by row without padding, with logits, log-softmax and `backward`, in float64."""
    model = load_memory_lm(export).double().eval()
    stream = FactStream(
        FactsConfig(num_facts=5, subset_seed=1),
        tokenizer=TokenizerConfig(path=str(export)),
        context_length=96,
    )
    fisher = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    rows = []
    for batch in stream.train_dataloader():
        rows += zip(batch["input_ids"], batch["labels"], batch["segment_ids"], strict=True)
    for ids, labels, segments in rows[:num_rows]:
        length = int((segments > 0).sum())
        model.zero_grad()
        log_p = model(ids[None, :length]).logits[0].log_softmax(-1)
        targets = [(t, int(labels[t + 1])) for t in range(length - 1) if labels[t + 1] >= 0]
        torch.stack([log_p[t, token] for t, token in targets]).sum().backward()
        for name, parameter in model.named_parameters():
            fisher[name] += parameter.grad**2 / num_rows
    return fisher


def test_fisher_is_the_mean_squared_gradient_of_a_row(finetune_by_yaml, export):
    """Seven rows, of more than one batch."""
    name = f"triptych.callbacks.remember.elastic_weight_consolidation.{NAME}"
    section = {"class_path": name, "init_args": {"data": STREAM, "weight": 0.5, "num_rows": 7}}
    run = finetune_by_yaml("--trainer.precision", "64-true", callbacks=[section])
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    state = last["callbacks"][NAME]
    expected = fisher_by_hand(export, 7)
    assert list(state["fisher"]) == list(expected)
    for name, fisher in expected.items():
        torch.testing.assert_close(state["fisher"][name], fisher, rtol=1e-9, atol=1e-18)
        assert state["fisher"][name].dtype == torch.float64
    assert sum(int((fisher > 0).sum()) for fisher in expected.values()) > 1000


def with_state(weight: float) -> tuple[ElasticWeightConsolidation, SimpleNamespace]:
    """Two weights by hand: F = (2, 0.5), theta0 = (1, -1), theta = (1.5, 3)."""
    callback = ElasticWeightConsolidation(Facts(), weight=weight)
    sizes = {"vocab_size": 4, "hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1}
    model = LlamaForCausalLM(LlamaConfig(**sizes, num_attention_heads=1))
    model.pair = torch.nn.Parameter(torch.tensor([1.5, 3.0]))
    callback.fisher = {"pair": torch.tensor([2.0, 0.5])}
    callback.anchors = {"pair": torch.tensor([1.0, -1.0])}
    return callback, SimpleNamespace(model=model, log=lambda *_: None)


def test_the_penalty_and_its_gradient_by_hand():
    callback, pl_module = with_state(weight=8.0)
    penalty = callback.loss_term(pl_module, batch=None)
    assert penalty.item() == 8.0 / 2 * (2.0 * 0.5**2 + 0.5 * 4.0**2)
    penalty.backward()
    # lambda F (theta - theta0), exactly
    assert torch.equal(pl_module.model.pair.grad, torch.tensor([8 * 2.0 * 0.5, 8 * 0.5 * 4.0]))


def test_the_first_step_is_free_and_later_ones_are_pulled_back(finetune, export):
    run = finetune(ewc(weight=1.0))
    penalties = run.logged(KEY)
    assert penalties[0] == 0.0
    assert min(penalties[1:]) > 0
    assert not same(run, finetune())
    anchors, before = run.state(NAME)["anchors"], load_memory_lm(export).state_dict()
    assert anchors.keys() == dict(load_memory_lm(export).named_parameters()).keys()
    assert all(torch.equal(anchors[name], before[name]) for name in anchors)


def test_weight_zero_measures_and_changes_nothing(finetune):
    measured = finetune(ewc(weight=0.0))
    assert same(finetune(), measured)
    assert set(measured.logged(KEY)) == {0.0}


def test_resumes_exactly(finetune):
    """From the Fisher information of the start, not of the weights where it goes on."""
    resumes_exactly(finetune, ewc, KEY)


def test_frozen_weights_are_left_out(finetune):
    run = finetune(ewc(), trainable="values")
    assert list(run.state(NAME)["fisher"]) == ["memory_values.0.weight"]


def test_what_cannot_work_is_named(finetune):
    with pytest.raises(ValueError, match="but there are none"):
        finetune(FreezeAll(), ewc())


def test_a_checkpoint_of_other_weights_is_refused(finetune):
    run = finetune(ewc(), CopyCheckpoint(), every_n_train_steps=3)
    checkpoint = run.folder / "checkpoints" / "copy.ckpt"
    with pytest.raises(ValueError, match="holds other weights than this run trains"):
        finetune(ewc(), ckpt_path=checkpoint, trainable="values")


def test_contract():
    callback, _ = with_state(1.0)
    state = pickle.loads(pickle.dumps(callback)).state_dict()
    again = ElasticWeightConsolidation(Facts())
    assert again.state_dict() == {}
    again.load_state_dict(state)
    assert torch.equal(again.state_dict()["fisher"]["pair"], torch.tensor([2.0, 0.5]))
    assert callback.state_key == NAME
