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
from triptych.objectives.diversify.policy_loss import Dap, Grpo, Rloo

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


def test_worst():
    both = diagnose_settings(0.001, Grpo(), K3, MARA)
    assert worst(both) == "collapse"
    assert {f.severity for f in both} == {"warning", "collapse"}
    assert worst([]) is None
