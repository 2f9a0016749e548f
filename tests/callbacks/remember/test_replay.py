"""Replay: the loss it adds, where it stands, and when it keeps quiet."""

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM

from tests.callbacks.remember.finetuning_runs import (
    OLD_FACTS,
    CopyCheckpoint,
    export,
    exported,
    finetune,
    finetune_by_yaml,
    logged,
    old_facts,
    resumes_exactly,
    same,
)
from tests.callbacks.test_callbacks import fit
from triptych.callbacks.remember.replay import Replay
from triptych.callbacks.remember.replayed_batches import ReplayedBatches
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.remember.facts.fact_stream import FactStream
from triptych.datamodules.remember.facts.facts import FactsConfig
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.batch_nll import batch_nll

__all__ = ["export", "finetune", "finetune_by_yaml"]

REPLAY = {
    "class_path": "triptych.callbacks.remember.replay.Replay",
    "init_args": {"data": OLD_FACTS, "weight": 0.7},
}


def replay(weight: float = 0.7) -> Replay:
    return Replay(old_facts(), weight)


def test_steps_are_those_of_a_plain_loop_over_both_losses(finetune_by_yaml, export):
    """The tokenizer of the replayed data is the run's, though its YAML does not say so."""
    run = finetune_by_yaml(callbacks=[REPLAY])
    tokenizer = TokenizerConfig(path=str(export))
    facts = FactsConfig(num_facts=6, validation_facts=3)
    new = FactStream(facts, tokenizer=tokenizer, context_length=96, steps_per_visit=4)
    old = old_facts(tokenizer=tokenizer)
    model = load_memory_lm(export).train()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    replayed = []
    for _, taught, kept in zip(range(6), new.train_dataloader(), old.train_dataloader()):  # noqa: B905
        losses = []
        for batch in (taught, kept):
            nll = batch_nll(model, batch)
            losses.append(nll.sum_nats / nll.num_tokens)
        optimizer.zero_grad()
        (losses[0] + 0.7 * losses[1]).backward()
        optimizer.step()
        replayed.append(losses[1].item())
    assert logged(run, "train/replay_nll_nats_per_token") == pytest.approx(replayed, rel=1e-5)
    torch.testing.assert_close(exported(run), model.state_dict(), rtol=1e-4, atol=1e-6)


def test_weight_zero_measures_and_changes_nothing(finetune):
    without, measured = finetune(), finetune(replay(0.0))
    assert same(without, measured)
    key = "train/nll_nats_per_token"
    assert without.logged(key) == measured.logged(key)
    assert min(measured.logged("train/replay_nll_nats_per_token")) > 1
    assert not same(without, finetune(replay(0.1)))


def test_resumes_exactly(finetune):
    resumes_exactly(finetune, replay, "train/replay_nll_nats_per_token")


def test_steps_passed_over_replay_nothing(finetune):
    for stop_below_nats, num_replayed in ((100.0, 0), (0.0, 6)):
        run = finetune(replay(), stop_below_nats=stop_below_nats)
        assert run.state("Replay")["position"]["batches"] == num_replayed


def test_state_goes_back_to_the_last_optimizer_step(finetune):
    """Saved at the validation after five micro-batches; a step takes four."""
    accumulated = {
        "accumulate_grad_batches": 4,
        "limit_train_batches": 12,
        "limit_val_batches": 1,
        "val_check_interval": 5,
    }
    whole = finetune(replay(), CopyCheckpoint(), trainer=accumulated)
    assert whole.state("Replay", "copy.ckpt")["position"]["batches"] == 4
    copied = whole.folder / "checkpoints" / "copy.ckpt"
    assert same(whole, finetune(replay(), ckpt_path=copied, trainer=accumulated))


class Rows(LightningDataModule):
    """Numbers instead of batches."""

    class Loader(list):
        def state_dict(self) -> dict:
            return {}

        def load_state_dict(self, state: dict) -> None: ...

    def train_dataloader(self) -> list:
        return self.Loader(range(5))


def fake_run(rank: int = 0, world_size: int = 1) -> tuple[SimpleNamespace, SimpleNamespace]:
    strategy = SimpleNamespace(barrier=lambda name: None, batch_to_device=lambda batch: batch)
    trainer = SimpleNamespace(
        strategy=strategy, local_rank=0, global_rank=rank, world_size=world_size, global_step=0
    )
    sizes = {"vocab_size": 8, "hidden_size": 8, "intermediate_size": 8, "num_attention_heads": 1}
    config = LlamaConfig(num_hidden_layers=1, max_position_embeddings=8, **sizes)
    return trainer, SimpleNamespace(model=LlamaForCausalLM(config))


@pytest.mark.parametrize(
    ("rank", "world_size", "expected"),
    [(0, 1, [0, 1, 2, 3, 4, 0]), (0, 2, [0, 2, 4, 1]), (1, 2, [1, 3, 0, 2])],
)
def test_processes_take_turns_and_passes_follow_each_other(rank, world_size, expected):
    batches = ReplayedBatches(Rows(), "Replay")
    batches.setup(*fake_run(rank, world_size))
    assert [batches.next() for _ in expected] == expected


def test_what_cannot_work_is_named(export, workdir):
    data = Rows()
    with pytest.raises(ValueError, match=r"AddsLossTerms, but TinyModule has no `loss_terms`"):
        fit(workdir, Replay(data))
    data.context_length = 9
    with pytest.raises(ValueError, match="rows of 9 tokens, but the model has 8 positions"):
        ReplayedBatches(data, "Replay").setup(*fake_run())

    class Forgetful(Rows):
        def train_dataloader(self):
            return DataLoader(range(3))

    with pytest.raises(ValueError, match="loader of Forgetful has no state_dict"):
        ReplayedBatches(Forgetful(), "Replay").setup(*fake_run())

    class Empty(Rows):
        def train_dataloader(self):
            return self.Loader()

    empty = ReplayedBatches(Empty(), "Replay")
    empty.setup(*fake_run())
    with pytest.raises(ValueError, match="Empty has no training batches"):
        empty.next()


def test_contract(export):
    """It can be sent to another process, and its state has a name of its own."""
    callback = Replay(old_facts(tokenizer=TokenizerConfig(path=str(export))))
    assert pickle.loads(pickle.dumps(callback)).state_dict() == {}
    assert copy.deepcopy(callback).state_key == "Replay"
