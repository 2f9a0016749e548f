"""Rewards of single texts and of groups against values worked out by hand."""

import pytest

from triptych.objectives.rewards.answer_in_set import AnswerInSet
from triptych.objectives.rewards.distinctness import Distinctness
from triptych.objectives.rewards.length_window import LengthWindow
from triptych.objectives.rewards.regex_match import RegexMatch
from triptych.objectives.rewards.xml_format import XmlFormat


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("pear", 1), (" The Pear.\n", 1), ("ＰＥＡＲ", 1), ("an apple", 1), ("Sweet  Potato!", 1),
        ("", 0), (".", 0), ("pear or plum", 0), ("pears", 0), ("the", 0),
    ],
)  # fmt: skip
def test_answer_in_set(text, right):
    record = {"answers": ["pear", "apple", "sweet potato"]}
    assert AnswerInSet().score_one(text, "", record) == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<answer>1</answer>", 1), (" <answer> 2 </answer>\n", 1),
        ("<answer>3</answer>", 0), ("1", 0), ("<answer>1", 0), ("<answer>1</answer> 2", 0),
        ("<answer></answer>", 0), ("<answer>1</answer><answer>1</answer>", 0), ("<b>1</b>", 0),
    ],
)  # fmt: skip
def test_answer_in_a_tag(text, right):
    assert AnswerInSet(tag="answer").score_one(text, "", {"answers": ["1", "2"]}) == right
    assert XmlFormat(allowed=["1", "2"]).score_one(text, "", {}) == right


def test_a_record_without_answers_is_an_error_of_its_completions(rollout_of):
    scores = AnswerInSet(field="solutions")(rollout_of(["pear"], record={"answers": ["pear"]}))
    assert "no list of right answers in 'solutions'" in scores.errors[0]


def test_format_alone_takes_any_text():
    assert XmlFormat().score_one("<answer>x\ny</answer>", "", {}) == 1
    assert XmlFormat().score_one("<answer> </answer>", "", {}) == 0


def test_length_window_in_characters():
    reward = LengthWindow(3, 4, unit="characters")
    assert [reward.score_one(t, "", {}) for t in ("ab", " abc ", "abcd", "abcde")] == [0, 1, 1, 0]


def test_regex_in_any_part_and_negated():
    reward = RegexMatch(r"(?i)sorry", whole=False, negate=True)
    assert [reward.score_one(t, "", {}) for t in ("I am Sorry.", "Here you go.", "")] == [0, 1, 1]


def test_distinctness_within_groups(rollout_of):
    texts = ["a pear", "Pear", "plum", "fig", "fig", "pear"]
    exact = Distinctness()(rollout_of(texts, groups=[0, 0, 0, 1, 1, 2])).reward_B
    # pear twice among three: one of two others differs; the last is alone in its group.
    assert exact.tolist() == [0.5, 0.5, 1.0, 0.0, 0.0, 1.0]
    words = Distinctness("words")(rollout_of(["red fig", "green fig", "plum", ""], groups=[0] * 4))
    # {red fig} and {green fig} share one of three words, all else nothing.
    assert words.reward_B.tolist() == pytest.approx([8 / 9, 8 / 9, 1.0, 1.0])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AnswerInSet(tag="<answer>"), "bare name"),
        (lambda: XmlFormat(tag="an answer"), "bare name"),
        (lambda: XmlFormat(allowed=[]), "empty list"),
        (lambda: LengthWindow(5, 4), "0 <= least <= most"),
        (lambda: RegexMatch("("), "not a regular expression"),
    ],
)
def test_settings_that_cannot_work_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
