"""Policy optimisation: its gradient by hand, what goes wrong on the way, resuming."""

import csv
import logging
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import Callback, seed_everything

from tests.lit_modules.diversify.tiny_prompts import (
    ANSWERS,
    REFERENCE,
    Fails,
    TinyPrompts,
    TooShort,
    module,
    trainer,
)
from triptych.callbacks.remember.sparse_memory_finetuning import SparseMemoryFinetuning
from triptych.callbacks.remember.training_reads import TrainingReads
from triptych.cli import main
from triptych.lit_modules.diversify.policy_optimization import PolicyOptimization
from triptych.models.remember.memory_lm import load_memory_lm
from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.policy_loss import Dap, Grpo
from triptych.objectives.rewards.answer_in_set import AnswerInSet


class Keeps(Callback):
    """The gradient and the experience of every update."""

    def __init__(self) -> None:
        self.gradients: list[torch.Tensor] = []
        self.experiences: list = []
        self.logits: list[torch.Tensor] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gradients.append(pl_module.policy.logits_NK.grad.clone())
        self.logits.append(pl_module.policy.logits_NK.detach().clone())
        self.experiences.append(pl_module.experience)


def fit(folder: Path, steps: int = 4, **settings) -> tuple[PolicyOptimization, Keeps]:
    seed_everything(settings.pop("seed", 3), verbose=False)
    kept, made = Keeps(), module(evaluate_first=False, **settings)
    trainer(folder, kept, max_steps=steps).fit(made, TinyPrompts())
    return made, kept


# -- a step ------------------------------------------------------------------------------------


def gradient_by_hand(kept: Keeps, step: int, beta: float, with_mara: bool) -> np.ndarray:
    """-mean over samples of (R' - mean of the others' R') (onehot - pi), R' with k1 taken off."""
    pi = np.exp(kept.logits[step][0].double().numpy())
    pi /= pi.sum()
    rollout = kept.experiences[step].rollout
    answers = np.array([ANSWERS.index(text) for text in rollout.texts])
    groups = rollout.group_B.numpy()
    reference = np.log(np.array(REFERENCE))[answers]
    reward = (answers < 2).astype(float)
    augmented = reward.copy()
    for group in set(groups):
        good = (groups == group) & (reward >= 0.5)
        if with_mara and good.any():
            top = reference[good].max()  # 1 and 2 earn the same
            augmented[good] = 1.0 + beta * (top - reference[good])
    total = augmented - beta * (np.log(pi)[answers] - reference)
    gradient = np.zeros(3)
    for row, answer in enumerate(answers):
        others = [total[o] for o in range(len(answers)) if groups[o] == groups[row] and o != row]
        score = np.eye(3)[answer] - pi
        gradient -= (total[row] - np.mean(others)) * score / len(answers)
    return gradient


@pytest.mark.parametrize("with_mara", [False, True])
def test_the_gradient_is_rloos_with_the_kl_in_the_reward(tmp_path, with_mara):
    _, kept = fit(tmp_path, beta=0.3, mara=Mara(threshold=0.5) if with_mara else None)
    for step in range(4):
        expected = gradient_by_hand(kept, step, 0.3, with_mara)
        np.testing.assert_allclose(kept.gradients[step][0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(
    ("settings", "sampled"), [({"updates_per_rollout": 3}, 4), ({}, 4)], ids=["three", "one"]
)
def test_several_updates_go_on_one_rollout(tmp_path, settings, sampled):
    made, kept = fit(tmp_path, mara=Mara(threshold=0.5), **settings)
    assert len(kept.gradients) == 4 * made.updates_per_rollout
    assert len({id(e) for e in kept.experiences}) == sampled
    assert made.trainer.global_step == 4  # steps are training steps


def test_the_old_policy_of_a_second_update_is_the_one_that_sampled(tmp_path):
    """Without a clip, the gradient of a second update is weighted by pi / pi_old."""
    loss = Grpo(divide_by_group_std=False, clip_low=None, clip_high=None)
    _, kept = fit(tmp_path, 1, beta=0.0, updates_per_rollout=2, loss=loss)
    rollout = kept.experiences[1].rollout
    answers = np.array([ANSWERS.index(text) for text in rollout.texts])
    groups, reward = rollout.group_B.numpy(), (answers < 2).astype(float)
    old, new = (torch.log_softmax(x[0].double(), -1).numpy() for x in kept.logits)
    gradient = np.zeros(3)
    for row, answer in enumerate(answers):
        advantage = reward[row] - reward[groups == groups[row]].mean()
        ratio = np.exp(new[answer] - old[answer])
        gradient -= ratio * advantage * (np.eye(3)[answer] - np.exp(new)) / len(answers)
    np.testing.assert_allclose(kept.gradients[1][0].numpy(), gradient, atol=1e-6)


def test_dap_and_a_forward_kl_train_too(tmp_path):
    for settings in (
        {"loss": Dap(), "beta": 0.5},
        {"kl": KlPenalty("forward"), "mara": Mara(threshold=0.5, algorithm=2)},
        {"kl": KlPenalty("k3", "loss")},
        {"mara": Mara(percentile=50.0, scope="batch")},
    ):
        _, kept = fit(tmp_path, 2, **settings)
        assert all(gradient.abs().sum() > 0 for gradient in kept.gradients)


# -- what goes wrong ---------------------------------------------------------------------------


def test_a_threshold_that_is_never_reached_changes_nothing_and_is_told_once(tmp_path):
    vanilla, _ = fit(tmp_path, 45)
    with pytest.warns(UserWarning, match="no completion of the first 20 steps reached") as caught:
        mara, _ = fit(tmp_path, 45, mara=Mara(threshold=2.0))
    assert sum("no completion" in str(warning.message) for warning in caught) == 1
    assert torch.equal(vanilla.policy.logits_NK, mara.policy.logits_NK)
    with pytest.warns(UserWarning, match="no completion of the first 4 steps reached"):
        fit(tmp_path, 4, mara=Mara(threshold=2.0))


def test_a_completion_that_cannot_be_scored_is_left_out_counted_and_told_once(tmp_path):
    with pytest.warns(UserWarning, match="Fails could not score 'x'.*x is no number") as caught:
        made, kept = fit(tmp_path, 12, reward=Fails(), beta=0.0)
    assert sum("could not score" in str(warning.message) for warning in caught) == 1
    failed = sum(e.rollout.texts.count("x") for e in kept.experiences)
    assert made.experience_log.failed_samples == failed > 0
    assert made.trainer.logged_metrics["reward/failed_samples"] == failed
    assert made.trainer.logged_metrics["train/reward"] == 1.0  # the mean of what was scored
    # All that was scored earned the same: no advantage, no gradient.
    assert all(gradient.abs().max() == 0 for gradient in kept.gradients)
    assert ("completions that could not be scored", f"{failed}") in made.summary_rows()


def test_a_reward_of_another_length_ends_the_run(tmp_path):
    with pytest.raises(ValueError, match=r"TooShort gave reward.*expected \(16,\)"):
        fit(tmp_path, reward=TooShort())


def test_a_beta_of_zero_is_explained_once_and_one_below_refused(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        fit(tmp_path, 3, beta=0.0)
    told = [r.message for r in caplog.records if "Without a KL" in r.message]
    assert len(told) == 1
    with pytest.raises(ValueError, match=r"beta is -0\.1.*above"):
        module(beta=-0.1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"policy": None}, "no model to start from"),
        ({"init_from": "somewhere"}, "leave one of them out"),
        ({"loss": Dap(), "kl": KlPenalty()}, "Dap contains the KL already"),
    ],
)
def test_settings_that_cannot_work_say_so(settings, message):
    with pytest.raises(ValueError, match=message):
        module(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_samples", 0),
        ("learning_rate", -1.0),
        ("eval_temperature", 0.0),
        ("schedule", "linear"),
    ],
)
def test_settings_out_of_range_are_refused_by_the_parser(name, value):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PolicyOptimization)
    with pytest.raises(ArgumentError, match=f"(?s){name}.*{value}"):
        parser.parse_object({name: value})


def test_accumulation_and_several_updates_exclude_each_other(tmp_path):
    made = module(updates_per_rollout=2)
    with pytest.raises(ValueError, match="set one of them to 1"):
        trainer(tmp_path, accumulate_grad_batches=2).fit(made, TinyPrompts())


# -- randomness --------------------------------------------------------------------------------


def test_what_is_sampled_follows_from_seed_and_step_alone(tmp_path):
    """Not from what else draws random numbers."""

    class Draws(Callback):
        def on_train_batch_start(self, *args):
            torch.rand(7)

    texts = []
    for callbacks in ([], [Draws()]):
        seed_everything(5, verbose=False)
        kept = Keeps()
        trainer(tmp_path, kept, *callbacks).fit(module(evaluate_first=False), TinyPrompts())
        texts.append([e.rollout.texts for e in kept.experiences])
    assert texts[0] == texts[1]
    assert len({tuple(t) for t in texts[0]}) > 1
    _, other = fit(tmp_path, seed=6)
    assert [e.rollout.texts for e in other.experiences] != texts[0]


# -- validation --------------------------------------------------------------------------------


def test_validation_tells_reward_distance_and_modes(tmp_path):
    seed_everything(3, verbose=False)
    made = module(mara=Mara(threshold=0.5), eval_samples=64)
    run = trainer(tmp_path, limit_val_batches=1.0, max_steps=2, check_val_every_n_epoch=1)
    run.fit(made, TinyPrompts())
    start = made.start_numbers
    right = sum(REFERENCE[:2])
    assert start["val/held_out/reward"] == pytest.approx(right, abs=0.12)
    assert start["val/held_out/reward"] == pytest.approx(start["val/held_out/right_share"])
    assert start["val/held_out/kl_nats"] == pytest.approx(0, abs=1e-5)
    entropy = -sum(p * np.log(p) for p in REFERENCE)
    assert start["val/held_out/entropy_nats"] == pytest.approx(entropy, abs=0.15)
    assert start["val/held_out/distinct_right_answers"] == 2
    assert start["val/held_out/mode_coverage"] == 1
    assert 0.7 < start["val/held_out/mode_entropy_bits"] < 1
    assert start["val/held_out/finished_share"] == 1
    assert set(start) <= set(run.callback_metrics)
    (row, *_) = made.sample_rows
    assert set(row) == {
        *("set", "prompt", "completion", "reward", "reference_log_prob_nats"),
        *("augmented_reward", "above_threshold", "anchor"),
    }
    # One anchor a prompt, a 1 that keeps its reward; a 2 gets beta log(.55 / .25) more.
    rows = made.sample_rows
    assert [r["completion"] for r in rows if r["anchor"]] == ["1"]
    two = next(r for r in rows if r["completion"] == "2")
    assert two["augmented_reward"] == pytest.approx(1 + 0.03 * np.log(0.55 / 0.25), abs=1e-5)


# -- language models ---------------------------------------------------------------------------

BASE = {
    "family": "llama", "hidden_size": 16, "num_layers": 2, "num_heads": 2,
    "max_position_embeddings": 96, "overrides": {"initializer_range": 0.3},
}  # fmt: skip


def language_run(**model) -> dict[str, dict]:
    init_args = {
        "policy": {"base": BASE, "max_new_tokens": 6},
        "reward": {
            "class_path": "triptych.objectives.rewards.length_window.LengthWindow",
            "init_args": {"least": 1, "most": 12, "falloff": 24},
        },
        "mara": {"percentile": 50.0},
        "num_samples": 4,
        "eval_samples": 3,
        "learning_rate": 0.01,
    }
    return {
        "model": {
            "class_path": "triptych.lit_modules.diversify.policy_optimization.PolicyOptimization",
            "init_args": init_args | model,
        },
        "data": {
            "class_path": "triptych.datamodules.diversify.chat_prompts.ChatPrompts",
            "init_args": {
                "prompts": {"source": {"path": "embedded", "subset": "one_or_two"}},
                "tokenizer": {"vocab_size": 300},
                "batch_size": 2,
            },
        },
        "trainer": {
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 6,
            "max_epochs": -1,
            "limit_val_batches": 2,
        },
        "checkpoint": {"every_n_train_steps": 2},
    }


def columns(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    times = ("time", "_per_second", "_seconds")
    return [{k: v for k, v in row.items() if v and not k.endswith(times)} for row in rows]


def test_a_resumed_run_goes_on_bit_for_bit(tiny, tmp_path):
    steps = ["--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "2"]
    steps += ["--trainer.check_val_every_n_epoch", "null"]
    sections = language_run(updates_per_rollout=2)
    copied = "--trainer.callbacks+=tests.callbacks.remember.finetuning_runs.CopyCheckpoint"
    whole = main(tiny("--run_dir", "whole", *steps, copied, **sections))
    half = whole / "checkpoints" / "copy.ckpt"
    assert torch.load(half, weights_only=True)["global_step"] == 2  # training steps, not updates
    resumed = main(tiny("--run_dir", "resumed", *steps, "--ckpt_path", half, **sections))
    ours, theirs = (load_memory_lm(r / "export").state_dict() for r in (resumed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    tail = [row for row in columns(whole) if int(row["step"]) >= 4]
    assert len(tail) >= 2
    assert [row for row in columns(resumed) if int(row["step"]) >= 4] == tail


class CountsReads(Callback):
    """What sparse memory finetuning counts, against the tokens that were scored."""

    def __init__(self) -> None:
        self.pairs: list[tuple[int, int]] = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        (finetuning,) = [c for c in trainer.callbacks if isinstance(c, SparseMemoryFinetuning)]
        reads: TrainingReads = finetuning._reads
        rollout = pl_module.experience.rollout
        # Every prompt once, and of every completion all that predicts a token of it.
        lengths = dict(zip(rollout.prompts, rollout.prompt_mask_BP.sum(1).tolist(), strict=True))
        tokens = sum(lengths.values()) + int((rollout.num_tokens - 1).sum())
        self.pairs.append((int(sum(c.sum() for c in reads.counts())), tokens))


def test_a_memory_policy_learns_by_the_slots_it_was_scored_with(tiny):
    memory = {"layers": [1], "num_keys": 12, "num_heads": 2, "top_k": 3, "qk_norm": True}
    sections = language_run(policy={"base": BASE, "memory": memory, "max_new_tokens": 6})
    sections["trainer"]["callbacks+"] = [
        {"class_path": "tests.lit_modules.diversify.test_policy_optimization.CountsReads"},
        {
            "class_path": "callbacks.remember.sparse_memory_finetuning.SparseMemoryFinetuning",
            "init_args": {"num_slots": 5, "ranking": "tf", "optimizer": "adamw"},
        },
        {"class_path": "tests.lit_modules.diversify.test_policy_optimization.KeepsTable"},
    ]
    main(tiny(**sections))
    assert all(counted == tokens * 2 * 3 for counted, tokens in KeepsTable.pairs)
    assert len(KeepsTable.pairs) == 6
    before, after, written = KeepsTable.before, KeepsTable.after, KeepsTable.written
    same_S = (before.view(torch.int32) == after.view(torch.int32)).all(1)
    written_S = torch.zeros(len(before), dtype=torch.bool)
    written_S[written] = True
    assert 5 <= written_S.sum() < len(before) / 2
    assert torch.equal(same_S, ~written_S)


class KeepsTable(Callback):
    """The value table before and after, and which rows were written."""

    def on_train_start(self, trainer, pl_module):
        KeepsTable.before = self._table(pl_module)

    def on_train_end(self, trainer, pl_module):
        KeepsTable.after = self._table(pl_module)
        (finetuning,) = [c for c in trainer.callbacks if isinstance(c, SparseMemoryFinetuning)]
        KeepsTable.written = finetuning.rows_written[0]
        (counts,) = [c for c in trainer.callbacks if isinstance(c, CountsReads)]
        KeepsTable.pairs = counts.pairs

    def _table(self, pl_module):
        return pl_module.policy.model.memory_values[0].weight.detach().clone()


def test_a_run_exports_its_model_and_shows_completions(tiny, capsys):
    sections = language_run(reward={
        "class_path": "triptych.objectives.rewards.answer_in_set.AnswerInSet",
    }, mara={"threshold": 0.5})  # fmt: skip
    with pytest.warns(UserWarning, match="reached MARA's threshold"):
        run = main(tiny("--trainer.max_steps", 2, **sections))
    assert (run / "export" / "tokenizer.json").is_file()
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["init_args"]["mara"]["threshold"] == 0.5
    # One table: what the panel promises comes first, with its value before training.
    table = capsys.readouterr().out.partition("after 2 steps")[2].splitlines()
    rows = [re.split(r" *[│┃] *", line)[1:-1] for line in table if line[:1] in "│┃" and line]
    assert rows[0] == ["", "before", "after", "change"]
    shares = [f"val/held_out_phrasings/answer_share/{answer}" for answer in "12"]
    assert [row[0] for row in rows[1:3]] == shares
    assert all(all(row) for row in rows[1:3])
    assert 12 <= len(rows) <= 20
    assert not any(row[0].startswith(("lr/", "before training")) for row in rows)
    assert rows[-1][0] == "more numbers"


def test_the_answers_of_a_composed_reward_are_found():
    from triptych.lit_modules.diversify.policy_evaluation import answers_of
    from triptych.objectives.rewards.composed import WeightedSum
    from triptych.objectives.rewards.length_window import LengthWindow

    right = AnswerInSet(tag="answer")
    window = LengthWindow(least=1, most=3, falloff=3)
    assert answers_of(WeightedSum([window, WeightedSum([right])])) is right
    assert answers_of(window) is None
