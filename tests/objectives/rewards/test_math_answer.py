r"""Answers of maths are compared as expressions; a choice is decided by its letter."""

import threading

import pytest

from triptych.objectives.rewards import math_answer
from triptych.objectives.rewards.math_answer import MathAnswer

needs_math_verify = pytest.mark.skipif(
    math_answer.find_spec("math_verify") is None, reason="the extra math is not installed"
)


@needs_math_verify
@pytest.mark.parametrize(
    ("right", "text", "reward"),
    [
        ("72", "So 48 + 24 = 72. The answer is 72.", 1.0),
        ("72", "#### 72", 1.0),
        ("72", r"Natalia sold \boxed{72} clips, 24 in May.", 1.0),
        ("72", "It is 72, and not 71.", 0.0),
        ("72", "", 0.0),
        ("1234", "1,234", 1.0),
        ("7.5", "15/2", 1.0),
        (r"\frac{1}{3}", r"$\frac{2}{6}$", 1.0),
        (r"\frac{1}{3}", "0.333", 0.0),
        ("x^2+1", r"\boxed{1+x^2}", 1.0),
        ("$$7$$", "7", 1.0),
        (["1", "2"], "2", 1.0),
        (["B", "20"], r"\boxed{B}", 1.0),
        (["B", "20"], "The answer is (B).", 1.0),
        (["B", "20"], "A bus takes 20.", 1.0),
        (["B", "20"], "It is 20, so the answer is C.", 0.0),
        (["B", "20"], "5 + 15 = 20\nB", 1.0),
        (["E", "There is no right answer."], "None of them.", 0.0),
        (["E", "There is no right answer."], "(E)", 1.0),
    ],
)
def test_answers(rollout_of, right, text, reward):
    scores = MathAnswer()(rollout_of([text], record={"answers": right}))
    assert not scores.errors
    assert scores.reward_B.tolist() == [reward]


@needs_math_verify
def test_only_what_is_boxed_or_finished_may_count(rollout_of):
    rollout = rollout_of(["72", r"\boxed{72}", r"\boxed{72}"], record={"solution": 72.0})
    rollout.finished_B[2] = False
    scores = MathAnswer(field="solution", boxed=True, finished_only=True)(rollout)
    assert scores.reward_B.tolist() == [0.0, 1.0, 0.0]


@needs_math_verify
def test_rows_without_a_readable_answer_are_errors(rollout_of):
    assert "no right answer in 'answers'" in MathAnswer()(rollout_of(["1"])).errors[0]
    scores = MathAnswer()(rollout_of(["1"], record={"answers": [" "]}))
    assert "is no mathematical expression" in scores.errors[0]


@needs_math_verify
def test_it_works_beside_the_main_thread(rollout_of):
    """Where math-verify cannot set its alarms."""
    rewards = []
    rollout = rollout_of(["72", "71"], record={"answers": ["72"]})
    thread = threading.Thread(
        target=lambda: rewards.extend(MathAnswer()(rollout).reward_B.tolist())
    )
    thread.start()
    thread.join()
    assert rewards == [1.0, 0.0]


def test_without_math_verify_it_says_what_to_install(rollout_of, monkeypatch):
    monkeypatch.setattr(math_answer, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="install the extra `math`"):
        MathAnswer()(rollout_of(["1"], record={"answers": ["1"]}))


def test_settings_out_of_range():
    with pytest.raises(ValueError, match="digits is -1"):
        MathAnswer(digits=-1)
