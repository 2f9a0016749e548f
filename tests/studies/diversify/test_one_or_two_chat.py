"""The 1-2 task on a chat model: numbers by hand, verdicts, and its runs on a tiny model."""

import json
from pathlib import Path

import pytest
import yaml

from tests.conftest import ROOT
from tests.models.tiny_chat_model import tiny_chat_folder
from tests.studies.conftest import redrawn
from triptych.datamodules.embedded.one_or_two import few_shot_rows
from triptych.objectives.rewards.answer_in_set import AnswerInSet
from triptych.objectives.rewards.composed import Product
from triptych.objectives.rewards.regex_match import RegexMatch
from triptych.studies import one_or_two
from triptych.studies.diversify import one_or_two_chat as chat

NUM_PROMPTS = len(few_shot_rows())


def probabilities(one: float, two: float) -> list[list[list[float]]]:
    """Each prompt has these probabilities, and a hundredth of them with a full stop."""
    rest = [0.0] * (len(chat.SPELLINGS) - 2)
    return [[[p, 0.01 * p, *rest] for p in (one, two)]] * NUM_PROMPTS


START = probabilities(0.6, 0.1)


def test_numbers_of_probabilities():
    start = [*probabilities(0.3, 0.3)[:1], *START[1:]]  # the first prompt is even
    end = [*probabilities(0.5, 0.5)[:1], *probabilities(0.72, 0.18)[1:]]
    numbers = chat.answer_numbers(end, start)
    assert numbers[chat.SKEWED] == pytest.approx(0.8)  # without the first prompt
    assert numbers[chat.SHARE] == pytest.approx((0.5 + 3 * 0.8) / 4)
    assert numbers[chat.HELD_OUT] == numbers[chat.FURTHEST] == pytest.approx(0.8)
    assert numbers[chat.LEAST] == pytest.approx(0.9)
    assert numbers[chat.VALID] == pytest.approx((1 + 4 * 0.9) / 5)
    assert numbers[chat.OTHERWISE] == pytest.approx(0.01 * numbers[chat.VALID])


def test_predictions_and_the_pull_of_mara():
    vanilla, mara, weak = (chat.predicted(START, name) for name in chat.BETA_OF)
    assert vanilla[chat.SHARE] == pytest.approx(6 / 7)
    assert vanilla["pull"] == 0
    assert [mara[chat.SHARE], weak[chat.SHARE]] == pytest.approx([0.5, 0.5])
    assert mara["pull"] == pytest.approx(chat.BETA * 1.7918, abs=1e-4)  # log 6
    assert weak["pull"] == pytest.approx(0.03 * 1.7918, abs=1e-4)
    assert vanilla[chat.VALID] > 0.98


def test_the_reward_takes_one_spelling():
    rewards = yaml.safe_load((ROOT / chat.CONFIG).read_text())["model"]["init_args"]["reward"]
    (pattern,) = [part["init_args"]["pattern"] for part in rewards["init_args"]["rewards"][1:]]
    reward = Product([AnswerInSet(), RegexMatch(pattern)])
    texts = [spelling.format("2") for spelling in chat.SPELLINGS]
    scores = [
        [part.score_one(text, "", {"answers": ["1", "2"]}) for part in reward.rewards]
        for text in texts
    ]
    assert [min(parts) for parts in scores] == [1, *[0] * (len(texts) - 1)]


def test_verdicts():
    even, skewed = (chat.answer_numbers(p, START) for p in (probabilities(0.52, 0.47), START))
    vanilla = chat.answer_numbers(probabilities(0.8, 0.19), START)
    good = {chat.MARA: [even] * 5, chat.VANILLA: [vanilla] * 5}
    assert all(check.held for check in chat.checks(good).values())
    one_bad = good | {chat.MARA: [even] * 4 + [skewed]}
    assert sum(not check.held for check in chat.checks(one_bad).values()) == 4
    even_too = good | {chat.VANILLA: [vanilla] * 4 + [even]}
    assert sum(not check.held for check in chat.checks(even_too).values()) == 1


def test_study_and_configuration_agree():
    settings = yaml.safe_load((ROOT / chat.CONFIG).read_text())
    assert settings["model"]["init_args"]["beta"] == chat.BETA
    assert settings["trainer"]["max_steps"] == chat.STEPS


def test_start_is_skewed_and_often_wrong(smollm2: str):
    """The exact start of the real model; a third of its replies are no answer."""
    numbers = chat.answer_numbers(*[chat.answer_probabilities(smollm2)] * 2)
    assert 0.55 < numbers[chat.VALID] < 0.7
    assert numbers[chat.SKEWED] > 0.85
    assert numbers[chat.OTHERWISE] < 0.01


@pytest.mark.slow
@pytest.mark.usefixtures("warm_workers")
def test_runs_through(tmp_path: Path, smollm2: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(chat, "STEPS", 2)
    tiny = tiny_chat_folder(tmp_path / "chat", smollm2)
    words = ["--preset", "smollm2", "--workers", "1", "--out", str(tmp_path), "--model", tiny]
    results = one_or_two.main([*words, "--seeds", "1", "--tracking_uri", "null"])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    assert set(results["arms"]) == set(chat.BETA_OF)
    assert len(results["by_prompt"]) == NUM_PROMPTS
    assert redrawn("one_or_two", tmp_path) == (tmp_path / "figure.png").read_bytes()
    # A second call finds the runs and their measurements.
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob(chat.FILE)}
    one_or_two.main([*words, "--seeds", "1", "--tracking_uri", "null"])
    assert len(before) == len(chat.BETA_OF)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob(chat.FILE)} == before
