"""Functions as people have them: what they are called with, and what they may return."""

import math
import pickle

import pytest
import torch

from tests.objectives.rewards import own_reward
from triptych.objectives.rewards.base import TextReward
from triptych.objectives.rewards.composed import (
    Product,
    WeightedGeometricMean,
    WeightedMean,
    WeightedSum,
)
from triptych.objectives.rewards.python_function import PythonFunction

HERE = "tests.objectives.rewards.own_reward"


def own(name: str, **settings) -> PythonFunction:
    return PythonFunction(f"{HERE}:{name}", **settings)


def rewards(scores) -> list[float | None]:
    return [None if math.isnan(value) else value for value in scores.reward_B.tolist()]


def test_a_function_may_ask_whether_a_reply_ended_and_how_long_it_is(rollout_of):
    rollout = rollout_of(["a b", "c", "d e f"])
    rollout.finished_B[1] = False
    assert rewards(own("ended")(rollout)) == [1.0, None, 1.0]
    scores = own("words_of_all")(rollout)
    assert rewards(scores) == [2.0, None, 3.0]
    assert scores.not_applicable == {1}

    class Whole(TextReward):
        def score_one(self, text, prompt, record, finished=True, num_tokens=0):
            return float(finished) * num_tokens

    assert rewards(Whole()(rollout)) == [1.0, 0.0, 1.0]


def test_trls_function_is_called_as_trl_calls_it(rollout_of):
    rollout = rollout_of(["1", "22"], record={"answers": ["1"], "category": "x", "prompt": "p"})
    rollout.records[1] = {"answers": None, "category": "x"}
    reward = own("trl_columns", least=0.0, most=1.0)
    scores = reward(rollout)
    assert rewards(scores) == [1.0, None]
    assert scores.components["own/longest"].tolist() == [2.0, 2.0]
    assert scores.components["ids"].tolist() == [1.0, 1.0]
    assert rewards(own("trl_few")(rollout)) == [1.0, 1.0]
    assert rewards(own("trl_waits")(rollout)) == [1.0, 2.0]
    assert rewards(pickle.loads(pickle.dumps(reward))(rollout)) == [1.0, None]


def test_trls_function_of_messages(rollout_of):
    rollout = rollout_of(["1", "2"])
    assert rewards(own("trl_messages", conversational=True)(rollout)) == [1.0, 0.0]
    scores = own("trl_messages")(rollout)
    assert "set conversational to true" in scores.errors[0]
    assert scores.reward_B.isnan().all()


def test_trls_own_rewards_work(rollout_of):
    pytest.importorskip("trl")
    from trl.rewards import think_format_reward

    texts = ["<think>\nYes.\n</think>\nFour.", "Four."]
    scores = PythonFunction("trl.rewards:think_format_reward", conversational=True)(
        rollout_of(texts)
    )
    assert rewards(scores) == think_format_reward([[{"content": text}] for text in texts])
    assert rewards(scores) == [1.0, 0.0]


def test_coroutines_wait_together(rollout_of):
    own_reward.most_together = 0
    scores = own("waits")(rollout_of(["a", "bad", "ccc", "dd"]))
    assert rewards(scores) == [1.0, None, 3.0, 2.0]
    assert scores.errors == {1: "ValueError: not this one"}
    assert own_reward.most_together == 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: own("trl_needs_its_trainer"), "needs trainer_state: only TRL's"),
        (lambda: own("vowels", conversational=True), "only TRL's form gets messages"),
        (lambda: PythonFunction("nowhere.py:f"), "there is no file nowhere.py"),
        (lambda: PythonFunction("no_colon"), "no such function"),
    ],
)
def test_functions_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_list_of_another_length_ends_the_run(rollout_of):
    with pytest.raises(ValueError, match=r"shape \(1,\), expected \(2,\)"):
        own("one_too_few")(rollout_of(["a", "b"]))


def test_a_function_in_a_file_of_ones_own(rollout_of, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.path", list(__import__("sys").path))  # undone at the end
    (tmp_path / "scores").mkdir()
    source = "def shout(text, prompt, record):\n    return float(text.isupper())\n"
    for name in ("own_shout_a.py", "scores/own_shout_b.py"):
        (tmp_path / name).write_text(source)
        for path in (name, str(tmp_path / name)):
            reward = PythonFunction(f"{path}:shout", least=0.0, most=1.0)
            assert reward.name == "shout"
            assert rewards(reward(rollout_of(["A", "a"]))) == [1.0, 0.0]
    (tmp_path / "math.py").write_text(source)
    with pytest.raises(ValueError, match="another module is called math: rename it"):
        PythonFunction("math.py:shout")
    (tmp_path / "my-shout.py").write_text(source)
    with pytest.raises(ValueError, match="letters, digits and underscores"):
        PythonFunction("my-shout.py:shout")


# -- parts that do not apply -------------------------------------------------------------------


class Task(TextReward):
    """For rows of its kind alone: the number in the text."""

    def __init__(self, kind: str, low: float = 0.0, high: float = 4.0) -> None:
        self.kind, self.range = kind, (low, high)

    def score_one(self, text, prompt, record):
        kind, number = text.split()
        return float(number) if kind in (self.kind, "both") else None


TEXTS = ["maths 4", "code 2", "both 3", "neither 1", "both x"]


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda *parts: WeightedSum(parts, [1.0, 3.0]), [4.0, 6.0, 12.0]),
        (lambda *parts: WeightedMean(parts, [1.0, 3.0]), [4.0, 2.0, 3.0]),
        (lambda *parts: WeightedGeometricMean(parts, [1.0, 3.0]), [4.0, 2.0, 3.0]),
        (lambda *parts: Product(parts), [4.0, 2.0, 9.0]),
    ],
    ids=["sum", "mean", "geometric", "product"],
)
def test_a_part_that_does_not_apply_is_skipped(rollout_of, make, expected):
    scores = make(Task("maths"), Task("code"))(rollout_of(TEXTS))
    assert rewards(scores)[:3] == pytest.approx(expected)
    assert rewards(scores)[3:] == [None, None]
    # No part for the fourth; the fifth is an error of a part, and not skipped.
    assert scores.not_applicable == {3}
    assert "does not apply" in scores.errors[3]
    assert scores.errors[4].startswith("task: ValueError")
    assert scores.components["task"].isnan().tolist() == [False, True, False, True, True]


def test_a_sum_without_a_part_is_in_range(rollout_of):
    """Both parts give 1 to 4; one alone gives less than both at least give."""
    parts = [Task("maths", 1.0), Task("code", 1.0)]
    assert WeightedSum(parts).range == (0.0, 8.0)
    assert rewards(WeightedSum(parts)(rollout_of(["maths 1"]))) == [1.0]
    assert Product([Task("maths", 2.0), Task("code", 2.0)]).range == (1.0, 16.0)


def test_names_and_weights(rollout_of):
    reward = WeightedMean([Task("maths"), Task("code")], names=["maths", "code"])
    assert list(reward(rollout_of(["both 1"])).components) == ["maths", "code"]
    for names in (["one"], ["same", "same"]):
        with pytest.raises(ValueError, match="one for each, all different"):
            WeightedMean([Task("maths"), Task("code")], names=names)
    with pytest.raises(ValueError, match="set all above 0"):
        WeightedMean([Task("maths")], [0.0])
    torch.testing.assert_close(reward(rollout_of(["both 2"])).reward_B, torch.tensor([2.0]))
