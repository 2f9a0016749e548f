"""Rivals, group filter and overlong completions as settings of the module."""

import csv

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer, seed_everything
from safetensors.torch import load_file

from tests.lit_modules.diversify.test_policy_optimization import Keeps, fit, language_run
from tests.lit_modules.diversify.tiny_prompts import (
    ANSWERS,
    REFERENCE,
    TinyPrompts,
    module,
    trainer,
)
from triptych.cli import main
from triptych.models.diversify.categorical_policy import CategoricalPolicy
from triptych.objectives.diversify.group_filter import GroupFilter
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.policy_loss import Grpo
from triptych.objectives.diversify.rivals.differential_smoothing import DifferentialSmoothing
from triptych.objectives.diversify.rivals.entropy_bonus import EntropyBonus
from triptych.objectives.diversify.rivals.pass_at_k import PassAtK
from triptych.objectives.diversify.rivals.rehearsal import Rehearsal
from triptych.objectives.diversify.rivals.unlikeliness import Unlikeliness

REF = np.array(REFERENCE)


def distribution(kept: Keeps, step: int) -> np.ndarray:
    return kept.logits[step][0].double().softmax(-1).numpy()


def drawn(kept: Keeps, step: int) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of the answers, and of their groups."""
    rollout = kept.experiences[step].rollout
    return np.array([ANSWERS.index(t) for t in rollout.texts]), rollout.group_B.numpy()


def score_gradient(advantage: np.ndarray, answers: np.ndarray, pi: np.ndarray) -> np.ndarray:
    return -(advantage[:, None] * (np.eye(3)[answers] - pi)).mean(0)


# -- losses ----------------------------------------------------------------------------------------


def test_differential_smoothing_reads_right_from_the_scored_reward(tmp_path):
    """With the KL in the reward no completion has a reward of 1; the scored one still has."""
    loss = DifferentialSmoothing(gamma_right=0.2, gamma_wrong=0.1, divide_by_group_std=False)
    _, kept = fit(tmp_path, 2, beta=0.3, loss=loss)
    _, plain = fit(tmp_path, 1, beta=0.3, loss=Grpo(divide_by_group_std=False))
    answers, _ = drawn(kept, 0)
    assert set(answers) == {0, 1, 2}
    term = np.where(answers < 2, -0.2, 0.1) * np.log(REF[answers] / REF.sum())
    expected = plain.gradients[0][0].numpy() + score_gradient(term, answers, REF)
    np.testing.assert_allclose(kept.gradients[0][0].numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("loss", [PassAtK(k=4), Unlikeliness()], ids=["pass@k", "unlikeliness"])
def test_other_losses_train(tmp_path, loss):
    hard = CategoricalPolicy(ANSWERS, [(0.1, 0.1, 0.8)])
    _, kept = fit(tmp_path, 8, beta=0.0, loss=loss, policy=hard)
    assert distribution(kept, 7)[:2].sum() > 0.3


def test_a_right_answer_that_is_rare_gains_by_unlikeliness(tmp_path):
    share = {}
    for name, loss in (("grpo", Grpo()), ("unlikely", Unlikeliness(beta_rank=1.0))):
        _, kept = fit(tmp_path, 16, beta=0.0, loss=loss, learning_rate=0.2)
        share[name] = distribution(kept, 15)[1]
    assert share["unlikely"] > share["grpo"] + 0.1


# -- entropy bonus ---------------------------------------------------------------------------------


def test_the_entropy_bonus_adds_its_gradient(tmp_path):
    made, kept = fit(tmp_path, 2, entropy_bonus=EntropyBonus(0.5))
    _, plain = fit(tmp_path, 1)
    pi = distribution(kept, 0)
    entropy = -(pi * np.log(pi)).sum()
    expected = plain.gradients[0][0].numpy() + 0.5 * pi * (np.log(pi) + entropy)
    np.testing.assert_allclose(kept.gradients[0][0].numpy(), expected, atol=1e-6)
    logged = made.trainer.logged_metrics
    pi = distribution(kept, 1)
    assert float(logged["train/token_entropy_nats"]) == pytest.approx(-(pi * np.log(pi)).sum())
    assert float(logged["train/entropy_coefficient"]) == 0.5


def test_an_adaptive_bonus_adapts_at_each_optimizer_step(tmp_path):
    bonus = EntropyBonus(0.1, True, target_nats=1.2, coefficient_step=0.05)
    made, _ = fit(tmp_path, 3, entropy_bonus=bonus, updates_per_rollout=2)
    assert made.terms.control.coefficient == pytest.approx(0.4)  # six steps, all below 1.2


# -- rehearsal -------------------------------------------------------------------------------------


def test_solved_prompts_are_rehearsed_and_not_reinforced(tmp_path):
    """Answers 1 and 2 have .8 of the reference: every prompt is solved from a share of .3 on."""
    rehearsal = Rehearsal("forward", coefficient=0.5, num_samples=64, solved_share=0.3)
    made, kept = fit(tmp_path, 2, beta=0.0, rehearsal=rehearsal)
    assert kept.experiences[1].left_out_B.all()
    parts = [made.terms.reference._known[key] for key in made.terms.reference._known]
    assert len(parts) == 4  # two prompts a step, each sampled once
    texts = [t for part in parts[2:] for t in part.rollout.texts]
    assert set(texts) == {"1", "2"}  # only what is right
    share = np.array([texts.count(a) for a in ANSWERS]) / len(texts)
    expected = 0.5 * (distribution(kept, 1) - share)  # of the cross-entropy to these texts
    np.testing.assert_allclose(kept.gradients[1][0].numpy(), expected, atol=1e-6)
    assert float(made.trainer.logged_metrics["train/rehearsed_prompts_share"]) == 1


def test_prompts_that_are_not_solved_are_reinforced_only(tmp_path):
    rehearsal = Rehearsal(num_samples=64, solved_share=1.0)
    made, kept = fit(tmp_path, 2, beta=0.0, rehearsal=rehearsal)
    _, plain = fit(tmp_path, 2, beta=0.0)
    assert all(torch.equal(a, b) for a, b in zip(kept.gradients, plain.gradients, strict=True))
    assert float(made.trainer.logged_metrics["train/rehearsed_prompts_share"]) == 0


def test_a_policy_without_the_methods_says_so(tmp_path):
    class Bare(CategoricalPolicy):
        token_log_prob_and_entropy = CategoricalPolicy.__mro__[1].token_log_prob_and_entropy
        reference_sample = CategoricalPolicy.__mro__[1].reference_sample

    for key, settings in (("entropy_bonus", EntropyBonus(0.1)), ("rehearsal", Rehearsal())):
        with pytest.raises(ValueError, match=f"Bare does not .* model.init_args.{key} to null"):
            fit(tmp_path, 1, policy=Bare(ANSWERS, [REFERENCE]), **{key: settings})


def test_a_resumed_run_has_the_same_terms(tmp_path):
    """The coefficient is restored, and the reference's completions are sampled again, the same."""

    def run(steps: int, checkpoint: str | None = None) -> tuple[torch.Tensor, Trainer]:
        seed_everything(3, verbose=False)
        made = module(
            evaluate_first=False,
            entropy_bonus=EntropyBonus(0.1, True, target_nats=1.2, coefficient_step=0.05),
            rehearsal=Rehearsal(num_samples=8, solved_share=0.8),
        )
        fitted = trainer(tmp_path, max_steps=steps)
        fitted.fit(made, TinyPrompts(2), ckpt_path=checkpoint, weights_only=False)
        assert made.terms.control.coefficient == pytest.approx(0.1 + 0.05 * steps)
        return made.policy.logits_NK.detach(), fitted

    whole, _ = run(4)
    _, half = run(2)
    half.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = run(4, str(tmp_path / "half.ckpt"))
    assert torch.equal(resumed, whole)


# -- group filter ----------------------------------------------------------------------------------


def reward_of_groups(experience) -> list[list[float]]:
    groups: dict[int, list[float]] = {}
    group_B, reward_B = experience.rollout.group_B, experience.reward
    for group, reward in zip(group_B.tolist(), reward_B.tolist(), strict=True):
        groups.setdefault(group, []).append(reward)
    return list(groups.values())


def test_dropped_groups_have_no_weight_not_even_for_the_kl(tmp_path):
    made, kept = fit(tmp_path, 8, num_samples=3, beta=0.3, group_filter=GroupFilter())
    found = 0
    for step, experience in enumerate(kept.experiences):
        equal = [len(set(rewards)) == 1 for rewards in reward_of_groups(experience)]
        assert experience.left_out_B.tolist() == [e for e in equal for _ in range(3)]
        found += sum(equal)
        if all(equal):
            assert not kept.gradients[step].any()
    assert 0 < found < 16
    dropped = float(made.trainer.logged_metrics["train/dropped_share"])
    assert dropped == sum(equal) / 2


def test_a_group_of_right_answers_stays_with_mara(tmp_path):
    """MARA tells its answers apart; only groups of one answer, or all wrong, are dropped."""
    settings = {"mara": Mara(threshold=0.5), "group_filter": GroupFilter()}
    _, kept = fit(tmp_path, 8, num_samples=3, beta=0.3, **settings)
    stays = 0
    for experience in kept.experiences:
        texts = np.array(experience.rollout.texts).reshape(2, 3)
        left_out = experience.left_out_B.view(2, 3)[:, 0].tolist()
        assert left_out == [len(set(row)) == 1 for row in texts]
        stays += sum(set(row) == {"1", "2"} for row in texts)
    assert stays > 0


def test_equal_groups_are_sampled_again_for_the_same_prompts(tmp_path):
    filters = GroupFilter("resample", most_tries=6)
    made, kept = fit(tmp_path, 6, num_samples=3, group_filter=filters)
    _, plain = fit(tmp_path, 1, num_samples=3)
    before, after = plain.experiences[0], kept.experiences[0]
    redrawn = [len(set(rewards)) == 1 for rewards in reward_of_groups(before)]
    for group in range(2):
        rows = slice(3 * group, 3 * group + 3)
        same = before.rollout.texts[rows] == after.rollout.texts[rows]
        assert redrawn[group] or same
        assert after.rollout.prompts[rows] == before.rollout.prompts[rows]
    dropped = sum(int(e.left_out_B.sum()) for e in kept.experiences)
    for experience in kept.experiences:
        assert experience.rollout.group_B.tolist() == [0] * 3 + [1] * 3
        expected = [float(text in ("1", "2")) for text in experience.rollout.texts]
        assert experience.reward.tolist() == expected
        scored = made.policy.reference_token_log_prob(experience.rollout)
        torch.testing.assert_close(experience.reference_log_prob_BT, scored)
    _, without = fit(tmp_path, 6, num_samples=3, group_filter=GroupFilter())
    assert dropped < sum(int(e.left_out_B.sum()) for e in without.experiences) / 2


# -- language models, by YAML ----------------------------------------------------------------------

RIVALS = "triptych.objectives.diversify.rivals"


@pytest.mark.parametrize("arm", ["losses", "terms"])
def test_every_arm_is_a_setting_and_its_numbers_are_logged(tiny, arm):
    smoothing = {"class_path": f"{RIVALS}.differential_smoothing.DifferentialSmoothing"}
    settings = {
        "losses": {
            "loss": smoothing | {"init_args": {"gamma_right": 0.001, "right_reward": 0.5}},
            "overlong": {"mask_unfinished": True, "buffer": 3},
            "mara": None,
            "group_filter": {"action": "resample", "most_tries": 1},
        },
        "terms": {
            "entropy_bonus": {"coefficient": 0.01, "adaptive": True, "target_nats": 9.0},
            "rehearsal": {"num_samples": 4, "solved_share": 0.25, "right_reward": 0.5},
        },
    }[arm]
    run = main(tiny("--trainer.log_every_n_steps", "1", **language_run(**settings)))
    with (run / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/reward"]]
    assert len(rows) == 6
    keys = {
        "losses": ("train/dropped_share", "train/resampled_prompts_share", "reward/length_penalty"),
        "terms": ("train/entropy_coefficient", "train/token_entropy_nats"),
    }[arm]
    if arm == "terms":
        keys += ("train/rehearsal_nats_per_token", "train/rehearsed_prompts_share")
    keys += tuple(f"train/{part}_seconds" for part in ("generation", "reward", "scoring", "update"))
    for row in rows:
        assert all(row[key] for key in (*keys, "train/tokens_per_second"))
    assert load_file(run / "export" / "model.safetensors")
