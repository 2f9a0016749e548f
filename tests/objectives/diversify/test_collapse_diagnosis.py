"""What is said of settings and of a first batch."""

import pytest
import torch

from triptych.objectives.diversify.collapse_diagnosis import (
    diagnose_samples,
    diagnose_settings,
    worst,
)
from triptych.objectives.diversify.kl import KlPenalty
from triptych.objectives.diversify.mara import Mara
from triptych.objectives.diversify.policy_loss import Dap, Grpo, Reinforce, Rloo

MARA = Mara(threshold=0.9)
SECOND = Mara(threshold=0.9, algorithm=2)
K3 = KlPenalty("k3", "loss")
WEIGHTED = KlPenalty("k3", "loss", importance_weighted=True)


def text(findings):
    return " ".join(map(str, findings))


@pytest.mark.parametrize(
    ("loss", "kl", "mara"),
    [
        (Rloo(), KlPenalty(), MARA),
        (Rloo(), KlPenalty(), None),
        (Grpo(), KlPenalty(), MARA),
        (Rloo(), K3, SECOND),
        (Dap(), None, MARA),
    ],
)
def test_sound_settings_give_no_finding(loss, kl, mara):
    assert diagnose_settings(0.03, loss, kl, mara) == []


@pytest.mark.parametrize(
    ("beta", "loss", "kl", "mara", "severity", "reason"),
    [
        (0.03, Grpo(), WEIGHTED, MARA, "collapse", "standard deviation blows that up"),
        (0.03, Rloo(normalize_advantages=True), WEIGHTED, MARA, "collapse", "standard deviation"),
        (0.03, Grpo(), K3, SECOND, "warning", "falls as rewards become alike"),
        (0.03, Grpo(), K3, None, "warning", "falls as rewards become alike"),
        (0.03, Rloo(), K3, MARA, "warning", "forward KL's"),
        (0.03, Rloo(), KlPenalty("k1", "loss"), None, "collapse", "regularises nothing"),
        (0.03, Rloo(), KlPenalty("k3", "reward"), None, "warning", "neither"),
        (0.0, Rloo(), KlPenalty(), None, "collapse", "Without a KL"),
        (0.0, Rloo(), None, MARA, "collapse", "vanishes with beta"),
        (0.03, Rloo(), None, None, "collapse", "Without a KL"),
        (0.001, Rloo(), KlPenalty(), MARA, "warning", "rate of beta"),
        (0.03, Dap(sigma=128.0), None, MARA, "warning", "sigma is 128"),
        (0.03, Rloo(), KlPenalty(), Mara(threshold=0.9, clip=3.0), "note", "clipped"),
    ],
)
def test_findings(beta, loss, kl, mara, severity, reason):
    findings = diagnose_settings(beta, loss, kl, mara)
    assert len(findings) == 1
    assert findings[0].severity == severity
    assert reason in findings[0].reason
    assert findings[0].remedy.endswith(".")


def test_a_weighted_k3_is_the_reverse_kl():
    assert diagnose_settings(0.03, Rloo(), WEIGHTED, MARA) == []
    assert len(diagnose_settings(0.03, Rloo(), K3, MARA)) == 1


@pytest.mark.parametrize(
    ("beta", "loss", "kl", "mara", "named"),
    [
        (-0.1, Rloo(), KlPenalty(), None, "negative"),
        (0.1, Dap(), KlPenalty(), None, "contains the KL"),
        (0.0, Dap(), None, None, "divides by it"),
        (0.1, Rloo(), KlPenalty("k3", "loss", "token"), SECOND, "level to sequence"),
    ],
)
def test_contradictions_are_refused(beta, loss, kl, mara, named):
    with pytest.raises(ValueError, match=named):
        diagnose_settings(beta, loss, kl, mara)


def batch(reward, reference, group=None):
    group = [0] * len(reward) if group is None else group
    return torch.tensor(reward), torch.tensor(reference), torch.tensor(group)


def test_equal_rewards_keep_the_references_odds():
    # e^5 = 148.4 to 1, whatever beta is; MARA makes them equal.
    rows = batch([1.0, 1.0, 0.0], [-1.0, -6.0, -1.0])
    for beta in (0.01, 10.0):
        (found,) = diagnose_samples(*rows, beta)
        assert found.severity == "collapse"
        assert "1 to 1.5e+02" in found.reason
        assert "MARA" in found.remedy
    assert diagnose_samples(*rows, 0.01, MARA) == []
    (clipped,) = diagnose_samples(*rows, 0.01, Mara(threshold=0.9, clip=0.2))
    assert "without a clip" in clipped.remedy


def test_unequal_rewards_under_a_low_beta():
    # .1 / .001 = 100 nats: e^100 = 2.7e43; at beta = .1 it is 1 nat.
    rows = batch([0.95, 1.0 + 0.05, 0.0], [-2.0, -2.0, -2.0])
    (found,) = diagnose_samples(*rows, 0.001, good_reward=0.9)
    assert "1 to 2.7e+43" in found.reason
    # .1 / ln 100
    assert "0.0217" in found.remedy
    assert diagnose_samples(*rows, 0.1, good_reward=0.9) == []
    assert diagnose_samples(*rows, 0.001, MARA, good_reward=0.9) == []


def test_wrong_answers_may_vanish():
    assert diagnose_samples(*batch([1.0, 0.0], [-1.0, -1.0]), 0.001) == []


def test_prompts_are_looked_at_one_by_one():
    rows = batch([1.0, 1.0], [-1.0, -60.0], [0, 1])
    assert diagnose_samples(*rows, 0.01) == []
    (found,) = diagnose_samples(*rows, 0.01, Mara(threshold=0.9, scope="batch"))
    assert (found.severity, "scope" in found.reason) == ("warning", True)


def test_nothing_to_look_at():
    nan = float("nan")
    assert diagnose_samples(*batch([nan, nan], [-1.0, -9.0]), 0.01, MARA) == []
    assert diagnose_samples(*batch([1.0, 1.0], [-1.0, -9.0]), 0.0, MARA) == []


@pytest.mark.parametrize("mara", [None, MARA, Mara(percentile=80.0)])
def test_a_first_batch_of_zeros_says_that_and_nothing_of_good_answers(mara):
    """All four answers of a hard task are wrong: none is worth keeping."""
    rows = batch([0.0] * 4, [-20.0, -45.0, -60.0, -30.0])
    findings = diagnose_samples(*rows, 0.03, mara)
    assert "collapse" not in {finding.severity for finding in findings}
    if mara is not MARA:  # a percentile of zeros is reached by all of them
        assert len(findings) == (mara is None)
    else:
        (found,) = findings
        assert "All 4 completions got the reward 0, and none reached" in found.reason
        assert "without a clip" not in found.remedy
        assert "partial credit" in found.remedy


def test_equal_rewards_are_told_without_a_kl_too():
    (found,) = diagnose_samples(*batch([1.0, 1.0], [-1.0, -9.0]), 0.0)
    assert "All 2 completions got the reward 1" in found.reason
    assert "use MARA with a threshold" in found.remedy


def test_a_threshold_that_the_best_miss_is_what_to_lower():
    """Two answers of reward .5, and MARA, exact, from .9 on."""
    (found,) = diagnose_samples(*batch([0.5, 0.5, 0.0], [-1.0, -9.0, -1.0]), 0.03, MARA)
    assert "about equal reward" in found.reason
    assert "Lower MARA's threshold to 0.5" in found.remedy


def test_on_free_text_mara_pays_for_odd_wording():
    """beta .02 times 9 to 44 nats is as much as a reward from 0 to 1 has to give."""
    rows = batch([1.0, 1.0, 1.0, 0.0], [-20.0, -45.0, -64.0, -30.0])
    tokens = torch.tensor([20, 22, 25, 21])
    (found,) = diagnose_samples(*rows, 0.03, MARA, num_tokens_B=tokens)
    assert found.severity == "warning"
    # The median of 25 and 44 nats is 25 (the lower one): .75 against a range of 1.
    assert "MARA adds 0.75 (beta times 25 nats)" in found.reason
    assert "range over 1" in found.reason
    assert "mara.clip to 6.7 nats" in found.remedy  # 1 / 5 / .03
    assert diagnose_samples(*rows, 0.03, Mara(threshold=0.9, clip=6.0), num_tokens_B=tokens) != []
    assert "odd wording" not in text(
        diagnose_samples(*rows, 0.03, Mara(threshold=0.9, clip=6.0), num_tokens_B=tokens)
    )
    assert diagnose_samples(*rows, 0.01, MARA, num_tokens_B=tokens) == []
    # A rare answer of two tokens is another answer, which MARA is for.
    assert diagnose_samples(*rows, 0.03, MARA, num_tokens_B=torch.full((4,), 2)) == []


@pytest.mark.parametrize("loss", [Rloo(), Grpo()])
def test_single_samples_have_no_baseline(loss):
    (found,) = diagnose_settings(0.03, loss, KlPenalty(), MARA, num_samples=1)
    assert f"num_samples is 1, and {type(loss).__name__} compares" in found.reason
    assert "Reinforce" in found.remedy
    assert diagnose_settings(0.03, loss, KlPenalty(), MARA, num_samples=2) == []


def test_single_samples_without_a_baseline():
    assert diagnose_settings(0.03, Reinforce(), KlPenalty(), num_samples=1) == []
    (found,) = diagnose_settings(0.03, Reinforce(), KlPenalty(), MARA, num_samples=1)
    assert "its own anchor" in found.reason


def test_worst():
    both = diagnose_settings(0.001, Grpo(), K3, MARA)
    assert worst(both) == "collapse"
    assert {f.severity for f in both} == {"warning", "collapse"}
    assert worst([]) is None
