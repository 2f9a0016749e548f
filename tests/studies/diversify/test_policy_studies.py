"""The studies of MARA: predictions by hand, verdicts on made-up numbers, a smoke run of each."""

import json
import math

import pytest
import torch

from tests.conftest import ROOT
from tests.studies.conftest import redrawn
from triptych.datamodules.batches.tokenizer import TokenizerConfig
from triptych.datamodules.diversify.supervised_replies import RepliesConfig, SupervisedReplies
from triptych.datamodules.sources.records import RecordSource
from triptych.models.base_lm import BaseLMConfig
from triptych.models.diversify.causal_lm_policy import CausalLMPolicy
from triptych.models.remember.memory_lm import build_memory_lm
from triptych.studies import creative_qa, one_or_two
from triptych.studies.diversify.answer_probabilities import reply_probabilities


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """An untrained model with a tokenizer that the data know."""
    torch.manual_seed(0)
    source = RecordSource(path="embedded", subset="one_or_two")
    data = SupervisedReplies(
        RepliesConfig(source=source), tokenizer=TokenizerConfig(vocab_size=300)
    )
    sizes = BaseLMConfig(hidden_size=16, num_layers=1, num_heads=2, max_position_embeddings=160)
    folder = tmp_path_factory.mktemp("base") / "export"
    CausalLMPolicy(build_memory_lm(sizes, None, data.vocab_size), 8, data.tokenizer).export(folder)
    return folder


# -- the 1-2 task ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "share"),
    [
        (one_or_two.VANILLA, 0.6875),  # 55 to 25
        (one_or_two.MARA, 0.5),
        (one_or_two.FORWARD, 0.6875),
        # .0165/x + .0075/(x - .02365) + .006/(1 + x) = 1 at x = .03725
        (one_or_two.OVERSHOOT, 0.4454),
        (one_or_two.EXACT, 0.5),
    ],
)
def test_the_share_that_is_predicted(name, share):
    way = one_or_two.Way(name, 0.03)
    assert one_or_two.predicted_share([[0.55, 0.25]], way) == pytest.approx(share, abs=2e-3)


def numbers(share, valid=1.0, predicted=0.5):
    entropy = -sum(p * math.log2(p) for p in (share, 1 - share))
    return {
        one_or_two.SHARE: share,
        one_or_two.VALID: valid,
        one_or_two.ENTROPY: entropy,
        one_or_two.PREDICTED: predicted,
    }


def test_verdicts_on_the_one_or_two_task():
    good = {
        one_or_two.VANILLA: [numbers(0.7, predicted=0.69)] * 5,
        one_or_two.MARA: [numbers(s) for s in (0.5, 0.46, 0.54, 0.51, 0.6)],  # 4 of 5
        one_or_two.FORWARD: [numbers(0.69, predicted=0.69)] * 5,
        one_or_two.OVERSHOOT: [numbers(0.43, predicted=0.44)] * 5,
        one_or_two.EXACT: [numbers(0.49)] * 5,
    }
    assert all(check.held for check in one_or_two.checks(good).values())
    for arm, bad in (
        (one_or_two.MARA, [numbers(0.5), numbers(0.6), numbers(0.7), *[numbers(0.5)] * 2]),
        (one_or_two.VANILLA, [numbers(0.99, predicted=0.69)] * 5),
        (one_or_two.EXACT, [numbers(0.5, valid=0.9)] * 5),
    ):
        verdicts = one_or_two.checks(good | {arm: bad})
        assert sum(not check.held for check in verdicts.values()) == 1


def test_probabilities_of_replies_add_up_to_less_than_one(base):
    from triptych.datamodules.embedded.one_or_two import PRIOR, prompt_rows

    rows = prompt_rows()[:2]
    table = torch.tensor(reply_probabilities(base, rows, list(PRIOR)))
    assert table.shape == (2, len(PRIOR))
    assert (table > 0).all()
    assert (table.sum(1) < 1).all()


# -- open questions ----------------------------------------------------------------------------


def answered(reward, right, elsewhere):
    on = creative_qa._on
    return {
        on(creative_qa.PHRASINGS, creative_qa.REWARD): reward,
        on(creative_qa.PHRASINGS, creative_qa.RIGHT): right,
        on(creative_qa.CATEGORIES, creative_qa.RIGHT): elsewhere,
    }


def test_the_rival_is_as_hot_as_its_reward_allows():
    by_temperature = [answered(0.99, 3, 3), answered(0.9, 4, 4), answered(0.6, 5, 5)]
    assert creative_qa.hot(by_temperature, answered(0.85, 6, 6)) == by_temperature[1]


def test_verdicts_on_open_questions():
    seeds = (0.0, 0.01, -0.01, 0.02, -0.02)
    good = {
        creative_qa.MARA: [answered(0.98 + s, 6 + s, 4 + s) for s in seeds],
        creative_qa.RLOO: [answered(0.98, 3 + s, 3) for s in seeds],
        creative_qa.HOT: [answered(0.97, 5 - s, 3.5) for s in seeds],
    }
    assert all(check.held for check in creative_qa.checks(good).values())
    for arm, bad in (
        (creative_qa.HOT, [answered(0.97, 6.5, 3.5)] * 5),
        (creative_qa.RLOO, [answered(1.2, 3, 3)] * 5),
        (creative_qa.RLOO, [answered(0.98, 4.5, 3)] * 5),
        (creative_qa.RLOO, [answered(0.98, 3, 3.5)] * 5),
    ):
        verdicts = creative_qa.checks(good | {arm: bad})
        assert sum(not check.held for check in verdicts.values()) == 1


# -- smoke runs --------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_one_or_two_runs_through(base, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--preset", "smoke", "--workers", "1", "--out", str(tmp_path)]
    results = one_or_two.main([*words, "--init_from", str(base)])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert set(results["arms"]) == {
        one_or_two.VANILLA,
        one_or_two.MARA,
        one_or_two.FORWARD,
        one_or_two.OVERSHOOT,
        one_or_two.EXACT,
    }
    assert not results["held"]  # two steps teach nothing
    assert redrawn("one_or_two", tmp_path) == (tmp_path / "figure.png").read_bytes()


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_creative_qa_runs_through(base, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    words = ["--preset", "smoke", "--workers", "1", "--out", str(tmp_path), "--arms"]
    arms = [creative_qa.MARA, creative_qa.RLOO]
    results = creative_qa.main([*words, *arms, "--init_from", str(base)])
    assert set(results["arms"]) == {*arms, creative_qa.HOT}
    assert redrawn("creative_qa", tmp_path) == (tmp_path / "figure.png").read_bytes()
